"""How often a training set has each category of an evaluated file; needs no torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import eql_d2.data
from eql_d2.data.annotations import read_annotations
from eql_d2.data.counting import count_annotations
from eql_d2.data.json_files import read_json
from eql_d2.data.letters import frequency_letter
from eql_d2.errors import InputError

COUNTS_KEYS = ("source", "num_images", "category_ids", "image_count", "instance_count", "groups", "counted")
SHIPPED = sorted((Path(eql_d2.data.__file__).parent / "counts").glob("lvis_*.json"))


@dataclass(frozen=True)
class TrainingCounts:
    """What ``Categories`` reads of a ``ClassFrequencies``, which needs torch."""

    image_count: np.ndarray  # (K,) in the order of the evaluated category ids
    instance_count: np.ndarray | None  # (K,)
    source: str

    def __len__(self) -> int:
        return len(self.image_count)

    @property
    def groups(self) -> str:
        """K letters, by LVIS's rule."""
        return "".join(map(frequency_letter, self.image_count.tolist()))


def training_counts(path, category_ids: Sequence[int]) -> TrainingCounts:
    """The counts of an annotation file, or those in a file of `eql-d2 counts`.

    Args:
        path: either file. A category that it does not list has no training image.
        category_ids: K ids, ascending.

    Raises:
        InputError: no such file, a broken one, or one of other categories.
    """
    if _is_counts_file(path):
        return _of_counts(read_json(path, required=("image_count",)), category_ids, str(path))
    own_ids = sorted(category["id"] for category in read_annotations(path)["categories"])
    counts = count_annotations(path, {category_id: index for index, category_id in enumerate(own_ids)})
    return _of_counts(counts | {"category_ids": own_ids}, category_ids, str(path))


def shipped_counts(category_ids: Sequence[int], letters: str) -> TrainingCounts | None:
    """LVIS's own of v0.5 or v1, if these are its categories: the same ids and letters."""
    for path in SHIPPED:
        counts = read_json(path)
        if counts["groups"] == letters and list(category_ids) == list(range(1, len(letters) + 1)):  # LVIS's ids
            return _of_counts(counts, category_ids, counts["source"])
    return None


def _is_counts_file(path) -> bool:
    try:
        with open(path, "rb") as file:
            first = re.match(rb'\s*\{\s*"(\w+)"', file.read(1024))
    except OSError:
        return False  # the reader says what is wrong
    return first is not None and first[1].decode() in COUNTS_KEYS


def _of_counts(counts: dict, category_ids: Sequence[int], source: str) -> TrainingCounts:
    images, instances = np.array(counts["image_count"]), counts.get("instance_count")
    own_ids = counts.get("category_ids")
    if own_ids is None:  # a counts file has them in ascending order
        if len(images) != len(category_ids):
            raise InputError(
                f"{source} counts {len(images)} categories, the evaluated annotations have {len(category_ids)}: give "
                f"the counts, or the annotations, of the set that was trained on"
            )
        own_ids = category_ids
    place = {category_id: index for index, category_id in enumerate(own_ids)}
    if not place.keys() & set(category_ids):
        raise InputError(f"{source} has none of the evaluated category ids: is it of another dataset?")
    index = np.array([place.get(category_id, -1) for category_id in category_ids])
    seen = index >= 0
    return TrainingCounts(
        np.where(seen, images[index], 0),
        None if instances is None else np.where(seen, np.array(instances)[index], 0),
        source,
    )
