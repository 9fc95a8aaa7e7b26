"""Ids that are texts in files of others: numbers as texts, names of image files, names of categories.

Ultralytics names an image by its file without the suffix, open-vocabulary detectors a category by its name, lists of a
split by their paths.
"""

import os
from collections.abc import Callable, Iterable, Mapping

import numpy as np


def image_names(images: Iterable[dict]) -> dict[str, int]:
    """Texts that mean one image: its file's path, name, and name without the suffix."""
    paths = [(image.get("file_name") or image.get("coco_url"), image["id"]) for image in images]
    return _names([(path, number) for path, number in paths if isinstance(path, str)], _of_path)


def category_names(categories: Iterable[dict]) -> dict[str, int]:
    """Texts that mean one category: its name, and in lower case with spaces for underscores."""
    names = [(category.get("name"), category["id"]) for category in categories]
    return _names([(name, number) for name, number in names if isinstance(name, str)], _plain)


def numbers_of(texts: np.ndarray, ids: np.ndarray, names: Mapping[str, int]) -> np.ndarray:
    """Ids for texts.

    Args:
        texts: (N,), as they are in the file.
        ids: the dataset's.
        names: of :func:`image_names` or :func:`category_names`.

    Returns:
        (N,) int64: the numbers that the texts spell if all are ids, else those of what they name, or else spell; a
        number that is no id for the rest.
    """
    different, place = np.unique(texts, return_inverse=True)
    spelt = [_spelt(text) for text in different.tolist()]
    listed, unlisted = set(ids.tolist()), int(ids.min()) - 1
    if not all(number in listed for number in spelt):
        named = [_named(text, names) for text in different.tolist()]
        spelt = [number if name is None else name for name, number in zip(named, spelt, strict=True)]
    return np.array([unlisted if n is None else n for n in spelt], dtype=np.int64)[place]


def _names(names: list[tuple[str, int]], others: Callable[[str], tuple[str, ...]]) -> dict[str, int]:
    """The names, and other spellings of them that are none themselves, without what means several."""
    spellings = [(other, number) for name, number in names for other in others(name)]
    return _of_one(spellings) | _of_one(names)


def _of_one(names: list[tuple[str, int]]) -> dict[str, int]:
    meanings: dict[str, set] = {}
    for text, number in names:
        meanings.setdefault(text, set()).add(number)
    return {text: numbers.pop() for text, numbers in meanings.items() if len(numbers) == 1}


def _of_path(path: str) -> tuple[str, ...]:
    name = os.path.basename(path.replace("\\", "/"))
    return name, os.path.splitext(name)[0]


def _plain(name: str) -> tuple[str, ...]:
    return (name.lower().replace("_", " "),)


def _named(text: str, names: Mapping[str, int]) -> int | None:
    return next((names[t] for t in (text, *_of_path(text), *_plain(text)) if t in names), None)


def _spelt(text: str) -> int | None:
    try:
        return int(text) if text.isdecimal() else int(float(text)) if float(text).is_integer() else None
    except ValueError:
        return None
