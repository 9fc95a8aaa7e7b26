"""A disk that fills up while a run writes: one error with the file, the last good checkpoint and the cure."""

import logging
import re
import sys
import threading
from contextlib import contextmanager

from detectron2.utils.events import EventWriter

from eql_d2.data.whole_files import naming
from eql_d2.errors import CANNOT_WRITE, InputError
from eql_d2.streams import full_stdout, take_every_letter


class OutputError(InputError):
    """A file of a run cannot be written; the message says what is left and what to do."""


@contextmanager
def explained_write_errors(folder: str, checkpointer=None):
    """Within this context a full disk is an :class:`OutputError`.

    Args:
        folder: of the run, named where the error does not say which file it was.
        checkpointer: of a training, which can be resumed.
    """
    before, threading.excepthook = threading.excepthook, quiet_about_a_full_disk
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        path = error.filename or full_stdout() or folder
        raise OutputError(cannot_write(path, error.strerror or str(error), checkpointer)) from error
    finally:
        threading.excepthook = before


def quiet_about_a_full_disk(args) -> None:
    """The hook for threads: TensorBoard's tells the training what it met, which then says so."""
    if not is_full_disk(args.exc_value):
        threading.__excepthook__(args)


def is_full_disk(error) -> bool:
    return isinstance(error, OSError) and error.errno in CANNOT_WRITE


def cannot_write(path: str, reason: str, checkpointer=None, checkpoint: str = "checkpoint") -> str:
    if checkpointer is None:
        left, again = "", "the same command again"
    else:
        last = checkpointer.get_checkpoint_file()
        left = f"The last good {checkpoint} is {last}. " if last else "There is none before it. "
        again = "the same command with --resume"
    return f"cannot write {path}: {reason}. {left}Make room or the folder writable, then run {again}"


class NamedWriter(EventWriter):
    """A writer of metrics whose failures name its file."""

    def __init__(self, writer: EventWriter, path: str):
        self.writer, self.path = writer, path

    def write(self):
        with naming(self.path):
            self.writer.write()

    def close(self):
        with naming(self.path):
            self.writer.close()


ESCAPES = re.compile(r"\x1b\[[0-9;]*m|[^\S\n\t ]|[\x00-\x08\x0e-\x1f\x7f-\x9f]")  # colours, and all other controls


def without_escapes(record: logging.LogRecord) -> bool:
    """Names of categories and files come from others: of what controls a terminal, only colours stay."""
    text = record.getMessage()
    clean = ESCAPES.sub(
        lambda match: match[0] if match[0].endswith("m") and match[0] != "m" else ascii(match[0])[1:-1], text
    )
    if clean != text:
        record.msg, record.args = clean, ()
    return True


def said_at_the_end(record: logging.LogRecord) -> bool:
    """False for Detectron2's traceback of a full disk, of which the last line of a run says all."""
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, OutputError) or is_full_disk(error))


def guard_the_log(*names: str) -> None:
    """Keep escape sequences of others out of the logs of these loggers, and let all letters in.

    And where log.txt cannot be written, say so once, not with a traceback for each line.
    """
    said = False

    def handle_error(record) -> None:
        nonlocal said
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            logging.Handler.handleError(handler, record)
        elif not said:
            said = True
            print(f"warning: lines of the log are lost: {error}", file=sys.stderr)

    for name in names:
        for handler in logging.getLogger(name).handlers:
            take_every_letter(getattr(handler, "stream", None))
            handler.addFilter(without_escapes)
            handler.addFilter(said_at_the_end)
            handler.handleError = handle_error  # type: ignore[method-assign]
