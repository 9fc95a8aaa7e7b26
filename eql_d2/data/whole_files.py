"""Writing files that are there whole or not at all, whatever ends the process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

UNFINISHED = ".tmp"  # ends the name of a file that is being written


@contextmanager
def written_whole(path, mode: str = "w") -> Iterator[IO]:
    """A file that appears under ``path`` when it is complete and on the disk, and not at all if something fails.

    Args:
        mode: "w" for text, as UTF-8, or "wb".
    """
    unfinished = f"{path}{UNFINISHED}"
    try:
        with open(unfinished, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(unfinished)
        raise
