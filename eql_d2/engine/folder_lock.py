"""One training at a time in an output folder: two would mix their checkpoints, metrics and logs."""

import errno
import logging
import os
import socket
from typing import IO

from eql_d2.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK_FILE = ".training.lock"
_held: dict[tuple[int, str], IO] = {}  # by process and path, open until the process ends


def claim_folder(folder: str) -> None:
    """Keep other trainings out of ``folder`` until this process ends, however it ends.

    The lock is the operating system's (POSIX), so that none is left of a process that was killed, and data workers that
    outlive it do not keep it. Where the file system has no locks, that is a warning. The file stays; only a process
    that runs holds it.
    """
    path = os.path.join(os.path.realpath(folder), LOCK_FILE)
    if (os.getpid(), path) in _held:  # an earlier training of this process
        return
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, "this system has none")
        file = open(path, "a+", encoding="utf-8")
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN) or not os.path.exists(path):
            logger.warning("%s cannot be locked (%s): see to it that no second training writes there", folder, error)
            return
        raise InputError(
            f"another training writes to {folder}{_holder(path)}: wait for it or stop it, or set OUTPUT_DIR (in a "
            f"LazyConfig train.output_dir) to another folder"
        ) from error
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _held[os.getpid(), path] = file


def _holder(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        words = file.read(200).strip()
    return f" ({words})" if words.isprintable() and words else ""
