"""What is raised on purpose: a mistake in what a person gave, and the cure."""

import difflib
import errno
import os
import re
from collections.abc import Iterable

from eql_d2.streams import full_stdout

# Set to 1 it lets a tool's InputErrors through, for who wants to see where they came from.
TRACEBACK_VARIABLE = "EQL_D2_TRACEBACK"

# No room, no quota left, the greatest size of a file, a file system that went read-only, or a disk that fails.
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
CHOSEN_BY_THE_USER = ("torch", "torchvision", "detectron2")
EXTRAS = {
    "train": ("fvcore", "iopath", "lvis", "matplotlib", "contourpy", "PIL", "tqdm"),
    "report": ("jinja2", "markupsafe", "plotly"),
    "vit": ("shapely", "timm"),
}


class InputError(ValueError):
    """A file, key, argument or command cannot be used as it is; the message is one line that names the cure.

    Tools show it as that line. Anything else that is raised is a bug, here or in a person's own code, and keeps its
    traceback. Names in the message may come from files of others: what would move the cursor or recolour the terminal
    is escaped, and a text without end is cut in its middle.
    """

    def __str__(self) -> str:
        return printable(super().__str__(), 4000)


class WriteError(OSError):
    """A file cannot be written; with ``errno``, ``strerror`` and ``filename``."""


def what_to_say(error: BaseException) -> str:
    """The one line that a tool shows of a mistake in the input, of a file that cannot be written, or of what is not
    installed; "" of anything else, which is a bug, unless :data:`TRACEBACK_VARIABLE` asks for all."""
    if os.getenv(TRACEBACK_VARIABLE):
        return ""
    if isinstance(error, InputError):
        return str(error) or type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        return how_to_install(error)
    if not isinstance(error, OSError):
        return ""
    path = error.filename if isinstance(error, WriteError) else error.errno in CANNOT_WRITE and full_stdout()
    if not path:
        return ""
    reason = "there is no such folder" if error.errno == errno.ENOENT else error.strerror
    return printable(f"cannot write {path}: {reason}. Give another path, or make room or the folder writable", 4000)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean X or Y?` with the names most like ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def one_line(error: BaseException, limit: int = 200) -> str:
    """What ``error`` says, as one line of at most ``limit`` characters.

    Of torch's refusal to unpickle, what it has found, without its advice to let it in.
    """
    text = " ".join(str(error).split())
    if "weights_only" in text:
        found = re.search(r"(?:Unsupported (?:global|class|operand)|GLOBAL) [^\s,]+", text)
        text = found[0] if found else "it holds more than tensors and plain Python"
    return text[:limit]


def printable(text: str, limit: int = 100) -> str:
    """``text`` on one line, with escapes for what no terminal should get raw; of more than ``limit`` characters the
    middle is left out."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " if c == "\n" else ascii(c)[1:-1] for c in text)
    if len(text) <= limit:
        return text
    return f"{text[: limit * 3 // 4]} ... {text[-limit // 4 :]}"


def how_to_install(error: BaseException | None) -> str:
    """The commands that install what an ImportError misses; "" if it is nothing that eql_d2 leaves to be installed."""
    package = (getattr(error, "name", None) or "").split(".")[0]
    if package in CHOSEN_BY_THE_USER:
        return (
            "torch and Detectron2 are needed, and pip cannot choose their builds for you. In a clone of eql_d2, "
            "`make setup` installs both into .venv; elsewhere install torch and torchvision, then "
            "`pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2` and "
            "`pip install 'eql_d2[train]'`"
        )
    for extra, packages in EXTRAS.items():
        if package in packages:
            return f"{package} is needed, of the extra `{extra}`: pip install 'eql_d2[{extra}]'"
    return ""
