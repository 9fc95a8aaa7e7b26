"""Writing files that are there whole or not at all, whatever ends the process."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from eql_d2.errors import WriteError
from eql_d2.streams import full_stdout

UNFINISHED = ".tmp"  # ends the name of a file that is being written


@contextmanager
def naming(path):
    """An OSError of what is written within is a WriteError that names the file; those of other files stay."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # the latter is torch.save's, of a write that has failed
        reasons = [e for e in (error, error.__context__, error.__cause__) if isinstance(e, OSError)]
        if not reasons or reasons[0].filename not in (None, str(path), f"{path}{UNFINISHED}"):
            raise
        where = full_stdout() if reasons[0].filename is None else ""  # what is printed meanwhile
        raise WriteError(reasons[0].errno, reasons[0].strerror or str(reasons[0]), where or str(path)) from None


def make_folder(path) -> None:
    """A folder to write into, with those above it, if it is not there yet."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        reason = "that is a file" if isinstance(error, FileExistsError) else error.strerror
        raise WriteError(error.errno, reason, error.filename) from None


@contextmanager
def folder_written_whole(folder) -> Iterator[str]:
    """A folder to write into; when all is complete its files move to ``folder``, and not at all if something fails."""
    unfinished = os.path.join(folder, UNFINISHED)
    make_folder(unfinished)
    try:
        with naming(folder):
            yield unfinished
        for name in os.listdir(unfinished):
            os.replace(os.path.join(unfinished, name), os.path.join(folder, name))
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def written_whole(path, mode: str = "w") -> Iterator[IO]:
    """A file that appears under ``path`` when it is complete and on the disk, and not at all if something fails.

    Args:
        mode: "w" for text, as UTF-8, or "wb".

    Raises:
        WriteError: with ``path`` as its ``filename``, also where a library has made another error of it.
    """
    unfinished = f"{path}{UNFINISHED}"
    try:
        with naming(path), open(unfinished, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with naming(path):
            os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(unfinished)
        raise
