"""The one reader of annotation files in COCO or LVIS format: normalised, checked, and read once a process.

What cannot be used is an error that names file and id. What Detectron2 and the APIs of COCO and LVIS pass over
(objects of images that are not listed, objects without area) is passed over here too, and counted in a note.
"""

import gc
import math
import os
import sys
from collections.abc import Callable, Sequence

from eql_d2.data.clipping import clip, reaches_out
from eql_d2.data.json_files import read_json, without_garbage_collection
from eql_d2.data.normalised import normalise
from eql_d2.data.screening import NUMBERS, places_to_look_at
from eql_d2.errors import InputError

PARTS = ("images", "annotations", "categories")
_STORED: dict[str, tuple] = {}  # what was read, by path: (stamp, Annotations)
MANY = 100_000  # annotations


class Annotations(dict):
    """The content of an annotation file.

    Attributes:
        notes: what was changed and left out of it, a line each.
        lost: the line on the objects that were left out, or "".
        without_area: the id of the first object that has no `area`, by which metrics group objects, or None.
    """

    def __init__(self, content: dict, notes: Sequence[str], lost: str = ""):
        super().__init__(content)
        self.notes, self.lost = tuple(notes), lost
        self.without_area = next((a["id"] for a in content["annotations"] if "area" not in a), None)


def read_annotations(json_file) -> Annotations:
    """The ``images``, ``annotations`` and ``categories`` of an annotation file, whose entries can be relied on.

    Objects of images that are not listed, of width or height 0, or whose polygons all have fewer than three corners
    are left out. A file without ``annotations``, as of LVIS's test sets, has no objects.

    A file is read once a process, until its size or time changes: the result is shared, so do not change it.

    Args:
        json_file: path of a JSON file in COCO or LVIS format.

    Raises:
        InputError: no such file, no JSON, a missing part, or the first entry that is not as the format has it.
    """
    name, stamp = str(json_file), _stamp(json_file)
    if stamp is None or _STORED.get(name, (None,))[0] != stamp:
        _STORED.pop(name, None)
        with without_garbage_collection():
            data = _read(name)
            if len(data["annotations"]) > MANY:
                gc.freeze()  # else the search for cycles would go through all of it, several times
        _STORED[name] = stamp, data
    return _STORED[name][1]


def read_truth(json_file) -> Annotations:
    """As :func:`read_annotations`, for evaluation by itself, which needs neither names, nor sizes, nor image files.

    A file that :func:`read_annotations` refuses is normalised alone, as the APIs of COCO and LVIS take it.

    Raises:
        InputError: no such file, no JSON, no ``images`` or ``categories``, or an object with an odd id, box or area.
    """
    try:
        return read_annotations(json_file)
    except InputError:
        raw = read_json(json_file, required=("images", "categories"))
        notes = normalise(raw)
        for annotation in raw.get("annotations", ()):
            problem = object_problem(annotation) if isinstance(annotation, dict) and "bbox" in annotation else None
            if problem:
                raise InputError(f"{json_file}: annotation {shown(annotation.get('id'))} {problem}") from None
        return Annotations({"annotations": [], **raw}, [f"{json_file}: {note}" for note in notes])


def trained_objects(json_file, data: Annotations) -> list[dict]:
    """The annotations of an annotation file but crowd regions, which are never trained on.

    Raises:
        InputError: it has some, but none that can be trained on.
    """
    annotations = data["annotations"]
    if data.lost and not annotations:
        raise InputError(f"{data.lost}: there is no object left to train on")
    trained = [a for a in annotations if not a.get("iscrowd", 0)]
    if annotations and not trained:
        raise InputError(
            f"{json_file}: all {len(annotations)} objects are crowd regions (iscrowd 1), which are never trained on: "
            f"mark single objects by iscrowd 0"
        )
    return trained


def forget_annotations(json_file) -> None:
    """Let go of a file that was read: a large one with its polygons holds gigabytes."""
    _, data = _STORED.pop(str(json_file), (None, None))
    if data is not None and len(data["annotations"]) > MANY:
        gc.unfreeze()


def _stamp(path) -> tuple | None:
    """What changes where a file does, or is another one under the same relative name."""
    if not os.path.isfile(path):
        return None
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _read(json_file: str) -> Annotations:
    raw = read_json(json_file, required=("images", "categories"))
    notes = normalise(raw)
    data = {"annotations": [], **raw}
    for part in PARTS:
        if not isinstance(data[part], list):
            raise InputError(f"{json_file}: `{part}` must be a list, got {shown(data[part])}")
    categories = _checked(json_file, "category", data["categories"], category_problem)
    if not categories:
        raise InputError(f"{json_file}: `categories` is empty; at least one category is expected")
    images = _checked(json_file, "image", data["images"], image_problem)
    annotations = data["annotations"]
    places = places_to_look_at(annotations, images, categories)
    _checked(
        json_file, "annotation", [annotations[p] for p in places], lambda a: annotation_problem(a, images, categories)
    )
    kept, lost = _within_images(annotations, places, images, notes)
    notes = [f"{json_file}: {note}" for note in [*notes, lost] if note]
    return Annotations({**data, "annotations": kept}, notes, lost and notes[-1])


def _within_images(annotations: list[dict], places: list[int], images: dict, notes: list) -> tuple[list[dict], str]:
    """The objects that can be seen, cut to their images, which ``notes`` says; and a note on the others, or "".

    Args:
        places: of those that may be none, or reach out of their image.
    """
    clipped: list[int] = []  # ids
    left_out: dict[str, list[int]] = {}  # ids by what is wrong
    unseen: set[int] = set()  # places
    ignored = [a["id"] for a in annotations if a.get("ignore")]
    for place in places:
        annotation = annotations[place]
        image = images.get(annotation["image_id"])
        if image is None:
            problem = "of images that are not listed"
        elif not (problem := without_extent(annotation)) and reaches_out(annotation, image["width"], image["height"]):
            if clip(annotation, image["width"], image["height"]):
                clipped.append(annotation["id"])
            else:
                problem = "outside of their image"
        if problem:
            left_out.setdefault(problem, []).append(annotation["id"])
            unseen.add(place)
    if ignored:
        notes.append(
            f"{len(ignored)} of {len(annotations)} annotations (id {ignored[0]} first) are marked `ignore`, which only "
            f"LVIS's metrics read: they are trained on; mark those that shall not be by iscrowd 1"
        )
    if clipped:
        notes.append(
            f"clipped {len(clipped)} of {len(annotations)} annotations (id {clipped[0]} first), which reach out of "
            f"their image"
        )
    if not unseen:
        return annotations, ""
    return [a for place, a in enumerate(annotations) if place not in unseen], (
        f"left out {len(unseen)} of {len(annotations)} annotations (id "
        f"{next(iter(left_out.values()))[0]} first): "
        + ", ".join(f"{len(ids)} {problem}" for problem, ids in left_out.items())
        + ": mend them, or drop them from the file"
    )


def _checked(json_file, kind: str, entries: list, problem_of: Callable) -> dict[int, dict]:
    """The entries by id, none of which has a problem."""
    by_id: dict[int, dict] = {}
    for place, entry in enumerate(entries):
        problem = _id_problem(entry, by_id) or problem_of(entry)
        if problem:
            has_id = isinstance(entry, dict) and is_id(entry.get("id"))
            name = f"{entry['id']}" if has_id else f"number {place} of the file"
            raise InputError(f"{json_file}: {kind} {name} {problem}")
        by_id[entry["id"]] = entry
    return by_id


def _id_problem(entry, by_id: dict) -> str | None:
    if not isinstance(entry, dict):
        return f"must be an object with an `id`, got {shown(entry)}"
    if not is_id(entry.get("id")):
        return f"must have a whole number as its `id`, got {shown(entry.get('id'))}"
    return "is there twice: give each an `id` of its own" if entry["id"] in by_id else None


# ---- what is wrong with an entry, as the rest of a sentence, or None ----


def category_problem(category: dict) -> str | None:
    if not isinstance(category.get("name"), str):
        return f"must have a text as its `name`, got {shown(category.get('name'))}"
    if category.get("frequency", "r") not in ("r", "c", "f"):
        return f"must have a `frequency` of 'r', 'c' or 'f', got {shown(category['frequency'])}"
    return None


def image_problem(image: dict) -> str | None:
    for side in ("height", "width"):
        if type(image.get(side)) is not int or image[side] < 1:
            return f"must have a whole number of pixels as its `{side}`, got {shown(image.get(side))}"
    if image["height"] * image["width"] > most_pixels():
        return f"has {image['height']} x {image['width']} pixels, more than the {most_pixels()} that can be opened"
    names = [image[key] for key in ("file_name", "coco_url") if key in image]
    if not names or not all(isinstance(name, str) and name for name in names):
        return f"must have a text as its `file_name` or `coco_url`, got {shown(names)}"
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        ids = image.get(key, [])
        if not isinstance(ids, list) or not all(map(is_id, ids)):
            return f"must have a list of category ids as its `{key}`, got {shown(ids)}"
    return None


def annotation_problem(annotation: dict, images: dict, categories: dict) -> str | None:
    problem = object_problem(annotation)
    if problem:
        return problem
    if annotation["category_id"] not in categories:
        return _without_category(annotation)
    if annotation.get("iscrowd", 0) not in (0, 1):
        return f"must have an `iscrowd` of 0 or 1, got {shown(annotation['iscrowd'])}"
    image = images.get(annotation["image_id"])
    if image is None:  # it will be left out
        return None
    return segmentation_problem(annotation.get("segmentation"), image)


def object_problem(annotation: dict) -> str | None:
    """Of what every evaluation needs."""
    if type(annotation.get("image_id")) is not int:
        return f"must have a whole number as its `image_id`, got {shown(annotation.get('image_id'))}"
    if type(annotation.get("category_id")) is not int:
        return _without_category(annotation)
    box = annotation.get("bbox")
    if not (type(box) is list and len(box) == 4 and are_numbers(box) and box[2] >= 0 and box[3] >= 0):
        return f"must have a `bbox` of four finite numbers x, y, width, height (>= 0), got {shown(box)}"
    area = annotation.get("area", 0)
    if type(area) not in NUMBERS or not 0 <= area <= sys.float_info.max:
        return f"must have a finite number of at least 0 as its `area`, got {shown(area)}"
    return None


def _without_category(annotation: dict) -> str:
    return f"has the category id {shown(annotation.get('category_id'))}, which `categories` does not list"


def segmentation_problem(segmentation, image: dict) -> str | None:
    """It may be nothing, polygons, or an RLE of the image's size."""
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not (isinstance(polygon, list) and are_finite(polygon)):
                return "must have as its `segmentation` lists of finite numbers x, y, x, y, ... in pixels"
        return None
    size = [image["height"], image["width"]]
    if not isinstance(segmentation, dict) or segmentation.get("size") != size:
        return f"must have as its `segmentation` polygons, or an RLE of size {size}"
    lengths = run_lengths(segmentation.get("counts"))
    if lengths is None or min(lengths, default=-1) < 0 or sum(lengths) != size[0] * size[1]:
        return f"has an RLE whose runs are not those of an image of {size[0]} x {size[1]} pixels"
    return None


def run_lengths(counts) -> list[int] | None:
    """The lengths of an RLE's runs, or None if they cannot be read.

    pycocotools reads its compressed form without checking it, beyond the end of the text if need be. That form holds
    a number as characters from "0" on: five bits each, the lowest first, and a sixth that says whether more follow;
    from the fourth on, a number is the difference to the one two before.
    """
    if isinstance(counts, list):
        return counts if all(type(n) is int for n in counts) else None
    if not isinstance(counts, str):
        return None
    lengths: list[int] = []
    value = shift = 0
    for bits in (ord(character) - 48 for character in counts):
        if not 0 <= bits < 64 or shift > 30:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:  # negative
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value, shift = 0, 0
    return None if shift else lengths


def most_pixels() -> float:
    """Beyond, Pillow takes an image for an attack; where it is not installed, as for counting, or has no limit: inf."""
    limit = getattr(sys.modules.get("PIL.Image"), "MAX_IMAGE_PIXELS", None)
    return 2 * limit if limit else math.inf


def is_id(value) -> bool:
    """Whether it is a whole number that fits into 64 bits, as the arrays of ids do."""
    return type(value) is int and -(2**63) <= value < 2**63


def are_numbers(values: list) -> bool:
    """Whether all are finite numbers, and none is True or False."""
    return {*map(type, values)} <= NUMBERS and are_finite(values)


def are_finite(values: list) -> bool:
    """Whether all are finite numbers; the sum says so, in most cases, faster than a look at each type."""
    try:
        if math.isfinite(sum(values)):
            return True
    except TypeError:  # not all are numbers
        return False
    except OverflowError:  # an int of 400 digits
        pass
    return all(abs(value) < sys.float_info.max for value in values)  # no NaN either


def without_extent(annotation: dict) -> str:
    """What an object lacks to be seen: a box with an area and, if it has polygons, one with three corners; or ""."""
    if annotation["bbox"][2] <= 0 or annotation["bbox"][3] <= 0:
        return "with a box without area"
    segmentation = annotation.get("segmentation")
    if not segmentation or isinstance(segmentation, dict):
        return ""
    for polygon in segmentation:
        if is_valid(polygon):
            return ""
    return "without a polygon of three corners"


def is_valid(polygon: list) -> bool:
    """Whether it has at least three corners, as Detectron2 has it."""
    return len(polygon) >= 6 and len(polygon) % 2 == 0


def shown(value) -> str:
    """A value in a message, not all of it if it is long."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
