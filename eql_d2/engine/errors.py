"""How a tool reports a user's mistake: one line that names the cure, and exit code 1."""

import os
import sys
import time
from contextlib import contextmanager
from typing import Type

import yaml
from detectron2.utils import comm

TRACEBACK_VARIABLE = "EQL_D2_TRACEBACK"
GRACE_SECONDS = 5
# What this package, Detectron2 and yacs raise for wrong input; training itself is not run under these.
SET_UP_ERRORS = (ValueError, KeyError, OSError, AssertionError, yaml.YAMLError)


@contextmanager
def one_line_errors(*types: Type[BaseException]):
    """Within this context an exception of ``types`` prints ``error: ...`` and ends the process with code 1.

    The environment variable ``EQL_D2_TRACEBACK=1`` lets it through, for who wants to see where it came from.
    """
    try:
        yield
    except types as error:
        if os.getenv(TRACEBACK_VARIABLE):
            raise
        if not comm.is_main_process():
            time.sleep(GRACE_SECONDS)  # the main process most likely says the same, and launch then ends this one
        # A KeyError's own text is the repr of its message.
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"error: {message or type(error).__name__}", file=sys.stderr, flush=True)
        sys.exit(1)
