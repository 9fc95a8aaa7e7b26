"""What is raised on purpose: a mistake in what a person gave, and the cure."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A file, key, argument or command cannot be used as it is; the message is one line that names the cure.

    Tools show it as that line. Anything else that is raised is a bug, here or in a person's own code, and keeps its
    traceback.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean X or Y?` with the names most like ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def one_line(error: BaseException, limit: int = 200) -> str:
    """What ``error`` says, as one line of at most ``limit`` characters."""
    return " ".join(str(error).split())[:limit]
