"""Packages that only some recipes need (the extra `vit` of setup.py): their absence is one line with the command."""

import importlib.util
from contextlib import contextmanager

from eql_d2.errors import InputError

VIT_PACKAGES = ("timm", "shapely")


@contextmanager
def explained_missing_package():
    """Within this context the absence of a package of the extra `vit` is an :class:`InputError` with the cure."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in VIT_PACKAGES:
            raise
        raise missing(package, "this config's model") from error


def require_shapely(who: str) -> None:
    """Detectron2 cuts polygons by shapely, and would say so image by image.

    Raises:
        InputError: it is not installed.
    """
    if importlib.util.find_spec("shapely") is None:
        raise missing("shapely", f"{who}, which crops masks that are polygons,")


def missing(package: str, who: str) -> InputError:
    return InputError(
        f"{who} needs {package}, which is not installed: pip install {package}, or pip install -e '.[vit]'"
    )
