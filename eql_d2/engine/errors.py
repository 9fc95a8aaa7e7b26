"""How a process of a run reports a user's mistake: one line that names the cure, and exit code 1."""

import sys
import time
from contextlib import contextmanager

from detectron2.utils import comm

from eql_d2.errors import what_to_say

GRACE_SECONDS = 5


@contextmanager
def one_line_errors():
    """Within this context what :func:`eql_d2.errors.what_to_say` knows prints ``error: ...`` and ends the process with
    code 1. Any other exception is a bug, and keeps its traceback.
    """
    try:
        yield
    except Exception as error:
        message = what_to_say(error)
        if not message:
            raise
        if not comm.is_main_process():
            time.sleep(GRACE_SECONDS)  # the main process most likely says the same, and launch then ends this one
        print(f"error: {message}", file=sys.stderr, flush=True)
        sys.exit(1)
