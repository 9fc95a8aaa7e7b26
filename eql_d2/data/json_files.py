"""Reading JSON files that a person may have written."""

import gc
import json
from contextlib import contextmanager

import msgspec

from eql_d2.errors import InputError

GZIP = b"\x1f\x8b"  # the beginning of a file


def read_json(path, required=()) -> dict:
    """The JSON object in a file.

    Raises:
        InputError: no such file, not JSON, or a key of ``required`` is missing.
    """
    try:
        with open(path, "rb") as f, without_garbage_collection():
            text = f.read()
            if text.startswith(GZIP):
                raise InputError(f"{path} is compressed: unpack it, by gunzip")
            data = parsed(text)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"there is no file {path}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON file: {error}") from error
    missing = [key for key in required if not isinstance(data, dict) or key not in data]
    if missing:
        raise InputError(f"{path} lacks {missing}; expected a JSON object with {list(required)}")
    return data


def parsed(text: bytes):
    """What JSON says, NaN, Infinity and a byte order mark included, which some tools write.

    msgspec makes the objects as it reads; orjson, which makes a tree of its own first, needs 2 GiB more for LVIS.
    """
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return json.loads(text)


@contextmanager
def without_garbage_collection():
    """Pause Python's search for cycles, which takes most of the time in which millions of objects are made."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
