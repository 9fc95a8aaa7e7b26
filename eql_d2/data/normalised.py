"""What export tools write otherwise than the format has it, made as the format has it.

CVAT and Datumaro leave optional keys there and empty, some write whole numbers as floats, Roboflow and Label Studio
count objects from 0, which the evaluations of COCO and LVIS never match, camera traps call images by texts, and Windows
writes backslashes.
"""

from typing import Any

# Keys that may be there and empty ("", null, 0), which is as if they were not there.
OPTIONAL = {
    "images": ("coco_url", "flickr_url", "file_name"),
    "categories": ("frequency",),
}
WHOLE = {
    "images": ("id", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "iscrowd"),
    "categories": ("id",),
}
NOT_LISTED = -1  # for the text of an image that there is not, where images get numbers
# What null stands for.
NULL: dict[str, dict[str, Any]] = {
    "images": {"neg_category_ids": [], "not_exhaustive_category_ids": []},
    "annotations": {"iscrowd": 0},
}


def normalise(data: dict) -> list[str]:
    """Change the content of an annotation file in place; whatever has another form is left alone.

    Returns:
        What was changed that a person should know of, as the rest of a line about the file; nothing else that is
        changed changes a meaning.
    """
    images, annotations, categories = (_entries(data, part) for part in ("images", "annotations", "categories"))
    for part, entries in (("images", images), ("annotations", annotations), ("categories", categories)):
        _make_whole(entries, WHOLE[part])
        for key in OPTIONAL.get(part, ()):
            for entry in entries:
                if key in entry and not entry[key]:
                    del entry[key]
        for key, value in NULL.get(part, {}).items():
            for entry in entries:
                if key in entry and entry[key] is None:
                    entry[key] = value
    for annotation in annotations:
        if "area" in annotation and annotation["area"] is None:
            del annotation["area"]
    for image in images:
        if isinstance(image.get("file_name"), str):
            image["file_name"] = image["file_name"].replace("\\", "/")
    _number_annotations(annotations)
    return _number_images(images, annotations)


def _make_whole(entries: list[dict], keys: tuple[str, ...]) -> None:
    for entry in entries:
        for key in keys:
            value = entry.get(key)
            if type(value) is float and value.is_integer():
                entry[key] = int(value)


def _number_images(images: list[dict], annotations: list[dict]) -> list[str]:
    """Whole numbers for image ids that are texts: those that they spell, or else 1, 2, ... in the file's order."""
    ids: list[Any] = [image.get("id") for image in images]
    if not _are_texts(ids):
        return []
    spelt = all(isinstance(i, str) and i.isascii() and i.isdigit() and str(int(i)) == i for i in ids)
    numbers = {i: int(i) if spelt else place for place, i in enumerate(ids, start=1)}
    for image in images:
        image["id"] = numbers[image["id"]]
    for annotation in annotations:
        image_id = annotation.get("image_id")
        if isinstance(image_id, str):
            annotation["image_id"] = numbers.get(image_id, NOT_LISTED)
        elif type(image_id) is int and not spelt:
            annotation["image_id"] = numbers.get(image_id, NOT_LISTED)
    if spelt:
        return []
    return [f"numbered {len(ids)} images whose ids are texts ({ids[0]!r} is 1, in written results too)"]


def _number_annotations(annotations: list[dict]) -> None:
    """Ids from 1 on where one is 0, and new ones where one is a text."""
    ids = [annotation.get("id") for annotation in annotations]
    if _are_texts(ids):
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
    elif any(type(i) is int and i == 0 for i in ids):
        for annotation in annotations:
            if type(annotation.get("id")) is int:
                annotation["id"] += 1


def _are_texts(ids: list) -> bool:
    """Whether ids can tell entries apart, but one at least is a text."""
    kinds = {*map(type, ids)}
    return str in kinds and kinds <= {int, str} and len({*ids}) == len(ids)


def _entries(data: dict, part: str) -> list[dict]:
    entries = data.get(part)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
