"""Standard streams as a program finds them: closed, or of an encoding that lacks letters."""

import io
import os
import sys


def ready_standard_streams() -> None:
    """Let standard output and error take whatever is written.

    One that is closed (``>&-``, some schedulers) becomes /dev/null. Else the next file that is opened, a checkpoint
    perhaps, would get its number, and with it what is written to standard error. Letters that a terminal's encoding
    lacks are escaped.
    """
    number = os.open(os.devnull, os.O_RDWR)
    while number <= 2:  # the lowest that is free
        number = os.open(os.devnull, os.O_RDWR)
    os.close(number)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
