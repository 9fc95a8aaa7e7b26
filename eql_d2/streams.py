"""Streams as a program finds them: closed, full, or of an encoding that lacks letters."""

import io
import os
import sys


def ready_standard_streams() -> None:
    """Let standard output and error take whatever is written.

    One that is closed (``>&-``, some schedulers) becomes /dev/null. Else the next file that is opened, a checkpoint
    perhaps, would get its number, and with it what is written to standard error.
    """
    number = os.open(os.devnull, os.O_RDWR)
    while number <= 2:  # the lowest that is free
        number = os.open(os.devnull, os.O_RDWR)
    os.close(number)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", closefd=False)
    take_every_letter(sys.stdout)
    take_every_letter(sys.stderr)


def take_every_letter(stream) -> None:
    """Whatever the locale: a file gets UTF-8, and a terminal escapes of the letters that it lacks."""
    if isinstance(stream, io.TextIOWrapper) and not stream.closed:
        encoding = None if stream in (sys.stdout, sys.stderr) else "utf-8"
        stream.reconfigure(encoding=encoding, errors="backslashreplace")


def full_stdout() -> str:
    """ "standard output" if that takes nothing any more, else ""; it ends in /dev/null from then on."""
    try:
        print(flush=True)  # the only way to know: what has failed is not kept
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the exit code tells of it once more
        return "standard output"
    return ""
