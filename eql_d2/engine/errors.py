"""How a tool reports a user's mistake: one line that names the cure, and exit code 1."""

import os
import sys
import time
from contextlib import contextmanager

from detectron2.utils import comm

from eql_d2.errors import TRACEBACK_VARIABLE, InputError

GRACE_SECONDS = 5


@contextmanager
def one_line_errors():
    """Within this context an :class:`InputError` prints ``error: ...`` and ends the process with code 1.

    The environment variable ``EQL_D2_TRACEBACK=1`` lets it through, for who wants to see where it came from. Any other
    exception is a bug, and keeps its traceback.
    """
    try:
        yield
    except InputError as error:
        if os.getenv(TRACEBACK_VARIABLE):
            raise
        if not comm.is_main_process():
            time.sleep(GRACE_SECONDS)  # the main process most likely says the same, and launch then ends this one
        print(f"error: {error or type(error).__name__}", file=sys.stderr, flush=True)
        sys.exit(1)
