"""Other libraries' functions in the place of which ours are called for a while."""

from contextlib import contextmanager


@contextmanager
def replaced(thing, name: str, value):
    """Within this context ``thing`` has another attribute."""
    before = getattr(thing, name)
    setattr(thing, name, value)
    try:
        yield
    finally:
        setattr(thing, name, before)
