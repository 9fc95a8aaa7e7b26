"""What export tools write otherwise than the format has it, made as the format has it.

CVAT and Datumaro leave optional keys there and empty, some write whole numbers as floats or texts, Roboflow and Label
Studio count objects from 0, which the evaluations of COCO and LVIS never match, camera traps call images by texts, and
Windows writes backslashes.
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
NOT_LISTED = -1  # for the text of an entry that there is not, where entries get numbers
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
    if "annotations" in data and data["annotations"] is None:
        del data["annotations"]
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
    is_lvis = any("neg_category_ids" in image for image in images)
    for image in images:
        if isinstance(image.get("file_name"), str):
            image["file_name"] = image["file_name"].replace("\\", "/")
    for category in categories:
        if type(category.get("name")) is int:  # of digits, say
            category["name"] = str(category["name"])
        if not is_lvis and category.get("frequency") not in (None, "r", "c", "f"):
            del category["frequency"]  # LVIS's letter alone has this meaning
    _number_annotations(annotations)
    return [
        *_number("images", images, annotations, "image_id"),
        *_number("categories", categories, annotations, "category_id"),
    ]


def _make_whole(entries: list[dict], keys: tuple[str, ...]) -> None:
    for entry in entries:
        for key in keys:
            value = entry.get(key)
            if type(value) is int or value is None:
                continue
            if (type(value) is float and value.is_integer()) or (type(value) is str and _spells_a_number(value)):
                entry[key] = int(value)


def _spells_a_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19 and str(int(text)) == text


def _number(kind: str, entries: list[dict], annotations: list[dict], key: str) -> list[str]:
    """Whole numbers, 1, 2, ... in the file's order, for ids of which one at least is a text.

    Args:
        kind: what the entries are, for the message.
        key: of the annotations, which refer to them by it.
    """
    ids: list[Any] = [entry.get("id") for entry in entries]
    if not _are_texts(ids):
        return []
    numbers = {i: place for place, i in enumerate(ids, start=1)}
    for entry in entries:
        entry["id"] = numbers[entry["id"]]
    for annotation in annotations:
        reference = annotation.get(key)
        if type(reference) in (int, str):
            annotation[key] = numbers.get(reference, NOT_LISTED)
    return [f"numbered {len(ids)} {kind} whose ids are texts ({ids[0]!r} is 1, in written results too)"]


def _number_annotations(annotations: list[dict]) -> None:
    """Ids from 1 on where one is 0, and new ones where one is a text."""
    ids = [annotation.get("id") for annotation in annotations]
    if _are_texts(ids):
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
    elif any(type(i) is int and i == 0 for i in ids):
        shift = 1 - min(i for i in ids if type(i) is int)
        for annotation in annotations:
            if type(annotation.get("id")) is int:
                annotation["id"] += shift


def _are_texts(ids: list) -> bool:
    """Whether ids can tell entries apart, but one at least is a text."""
    kinds = {*map(type, ids)}
    return str in kinds and kinds <= {int, str} and len({*ids}) == len(ids)


def _entries(data: dict, part: str) -> list[dict]:
    entries = data.get(part)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
