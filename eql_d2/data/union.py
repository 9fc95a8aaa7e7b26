"""Several annotation files under one vocabulary, in LVIS format: what a file does not annotate is no negative.

LVIS's 1,203 categories and COCO's 80 make one detector only if a model is not told that an LVIS image has no person
because LVIS's annotators did not look for one, nor that a COCO image has no tripod. LVIS format can say both, and every
tool here reads it: ``neg_category_ids`` of an image are the categories that are known to be absent. A file that has
none, as COCO, annotates each of its categories in every image, so that its negatives are those that are not there.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from eql_d2.data.annotations import read_annotations
from eql_d2.data.letters import frequency_letter
from eql_d2.errors import InputError, did_you_mean


def union(files: Sequence, same: Iterable[tuple[str, str]] = (), leave_out: Sequence = ()) -> list[dict]:
    """The content of each file with the categories of all: those of the first by its ids, then what others add.

    Categories are one if they have the same name, or if ``same`` says so.

    Args:
        files: annotation files in COCO or LVIS format.
        same: (name in a later file, name that it stands for).
        leave_out: annotation files whose images, by file name, are not taken: LVIS's validation set is images of COCO's
            training set.

    Raises:
        InputError: a name of ``same`` that there is not, or see :func:`eql_d2.data.annotations.read_annotations`.
    """
    contents = [read_annotations(file) for file in files]
    names = {other: name for other, name in same}
    known = {category["name"] for content in contents for category in content["categories"]}
    for name in (*names, *names.values()):
        if name not in known:
            raise InputError(f"no file has a category '{name}'{did_you_mean(name, known) or '.'}")
    categories = _categories(contents, names)
    ids = {category["name"]: category["id"] for category in categories}
    excluded = {_base_name(image) for file in leave_out for image in read_annotations(file)["images"]}
    parts = []
    for content in contents:
        new_id = {c["id"]: ids[names.get(c["name"], c["name"])] for c in content["categories"]}
        parts.append(_part(content, new_id, excluded))
    _count(categories, parts)
    return [{**part, "categories": categories} for part in parts]


def _categories(contents: Sequence[dict], names: dict[str, str]) -> list[dict]:
    categories = [dict(category) for category in contents[0]["categories"]]
    taken = {category["name"] for category in categories}
    free = max(category["id"] for category in categories) + 1
    for content in contents[1:]:
        for category in content["categories"]:
            name = names.get(category["name"], category["name"])
            if name not in taken:
                categories.append({**category, "name": name, "id": free})
                taken.add(name)
                free += 1
    return categories


def _part(content: dict, ids: dict[int, int], excluded: set[str]) -> dict:
    """Images and annotations under the new ids."""
    images = [image for image in content["images"] if _base_name(image) not in excluded]
    kept = {image["id"] for image in images}
    annotations = [{**a, "category_id": ids[a["category_id"]]} for a in content["annotations"] if a["image_id"] in kept]
    found = defaultdict(set)
    for a in annotations:
        found[a["image_id"]].add(a["category_id"])
    is_federated = any("neg_category_ids" in image for image in content["images"])

    def absent(image) -> list[int]:
        looked_for = {ids[i] for i in image.get("neg_category_ids", [])} if is_federated else set(ids.values())
        return sorted(looked_for - found[image["id"]])

    images = [
        {
            **image,
            "neg_category_ids": absent(image),
            "not_exhaustive_category_ids": sorted({ids[i] for i in image.get("not_exhaustive_category_ids", [])}),
        }
        for image in images
    ]
    return {"images": images, "annotations": annotations}


def _count(categories: list[dict], parts: list[dict]) -> None:
    """Set the counts and letters of the categories, over all parts."""
    objects: Counter = Counter()
    pairs = set()
    for place, part in enumerate(parts):
        for a in part["annotations"]:
            if not a.get("iscrowd", 0):
                objects[a["category_id"]] += 1
                pairs.add((place, a["image_id"], a["category_id"]))
    images = Counter(category for *_, category in pairs)
    for category in categories:
        count = images[category["id"]]
        category.update(image_count=count, instance_count=objects[category["id"]], frequency=frequency_letter(count))


def _base_name(image: dict) -> str:
    return os.path.basename(image.get("file_name") or image["coco_url"])
