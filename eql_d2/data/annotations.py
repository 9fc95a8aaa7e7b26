"""Annotation files in COCO or LVIS format, checked before anything is made of them.

What cannot be used is an error that names file and id. What Detectron2 and the APIs of COCO and LVIS pass over
(objects of images that are not listed, objects without area) is passed over here too, but counted in the log.
"""

import logging
import math
import sys
from collections.abc import Callable, Sequence

import PIL.Image

from eql_d2.data.json_files import read_json
from eql_d2.data.normalised import normalise
from eql_d2.errors import InputError

logger = logging.getLogger(__name__)

PARTS = ("images", "annotations", "categories")
# Beyond, Pillow takes an image for an attack; where its limit is switched off (None) there is none.
MAX_PIXELS = 2 * (PIL.Image.MAX_IMAGE_PIXELS or math.inf)
# What the metrics of each kind are computed by, beside what every object must have.
EVALUATED_BY = {"lvis": ("area",), "coco": ("area", "iscrowd")}


def read_annotations(json_file, required: Sequence[str] = ()) -> dict:
    """The ``images``, ``annotations`` and ``categories`` of an annotation file, whose entries can be relied on.

    Objects of images that are not listed, of width or height 0, or whose polygons all have fewer than three corners
    are left out; one log line says how many. A file without ``annotations``, as of LVIS's test sets, has no objects.

    Args:
        json_file: path of a JSON file in COCO or LVIS format.
        required: keys that every annotation must have, as of :data:`EVALUATED_BY`.

    Raises:
        InputError: no such file, no JSON, a missing part, or the first entry that is not as the format has it.
    """
    data = {"annotations": [], **normalise(json_file, read_json(json_file, required=("images", "categories")))}
    for part in PARTS:
        if not isinstance(data[part], list):
            raise InputError(f"{json_file}: `{part}` must be a list, got {_shown(data[part])}")
    categories = _checked(json_file, "category", data["categories"], category_problem)
    if not categories:
        raise InputError(f"{json_file}: `categories` is empty; at least one category is expected")
    images = _checked(json_file, "image", data["images"], image_problem)

    def problem(annotation):
        lacking = [key for key in required if key not in annotation]
        return f"has no `{lacking[0]}`" if lacking else annotation_problem(annotation, images, categories)

    annotations = _checked(json_file, "annotation", data["annotations"], problem).values()
    kept = [a for a in annotations if a["image_id"] in images and has_extent(a)]
    if len(kept) < len(annotations):
        logger.warning(
            "%s: left out %d of %d annotations, which have no area or are of images that are not listed",
            json_file,
            len(annotations) - len(kept),
            len(annotations),
        )
    return {**data, "annotations": kept}


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
        return f"must be an object with an `id`, got {_shown(entry)}"
    if not is_id(entry.get("id")):
        return f"must have a whole number as its `id`, got {_shown(entry.get('id'))}"
    return "is there twice" if entry["id"] in by_id else None


# ---- what is wrong with an entry, as the rest of a sentence, or None ----


def category_problem(category: dict) -> str | None:
    if not isinstance(category.get("name"), str):
        return f"must have a text as its `name`, got {_shown(category.get('name'))}"
    if category.get("frequency", "r") not in ("r", "c", "f"):
        return f"must have a `frequency` of 'r', 'c' or 'f', got {_shown(category['frequency'])}"
    return None


def image_problem(image: dict) -> str | None:
    for side in ("height", "width"):
        if type(image.get(side)) is not int or image[side] < 1:
            return f"must have a whole number of pixels as its `{side}`, got {_shown(image.get(side))}"
    if image["height"] * image["width"] > MAX_PIXELS:
        return f"has {image['height']} x {image['width']} pixels, more than the {MAX_PIXELS} that can be opened"
    names = [image[key] for key in ("file_name", "coco_url") if key in image]
    if not names or not all(isinstance(name, str) and name for name in names):
        return f"must have a text as its `file_name` or `coco_url`, got {_shown(names)}"
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        ids = image.get(key, [])
        if not isinstance(ids, list) or not all(map(is_id, ids)):
            return f"must have a list of category ids as its `{key}`, got {_shown(ids)}"
    return None


def annotation_problem(annotation: dict, images: dict, categories: dict) -> str | None:
    if not is_id(annotation.get("image_id")):
        return f"must have a whole number as its `image_id`, got {_shown(annotation.get('image_id'))}"
    category = annotation.get("category_id")
    if not is_id(category) or category not in categories:
        return f"has the category id {_shown(category)}, which `categories` does not list"
    box = annotation.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and are_numbers(box) and box[2] >= 0 and box[3] >= 0):
        return f"must have a `bbox` of four finite numbers x, y, width, height (>= 0), got {_shown(box)}"
    area = annotation.get("area", 0)
    if not are_numbers([area]) or area < 0:
        return f"must have a finite number of at least 0 as its `area`, got {_shown(area)}"
    if annotation.get("iscrowd", 0) not in (0, 1):
        return f"must have an `iscrowd` of 0 or 1, got {_shown(annotation['iscrowd'])}"
    image = images.get(annotation["image_id"])
    if image is None:  # it will be left out
        return None
    if not are_near([box[0], box[0] + box[2]], [box[1], box[1] + box[3]], image):
        return f"has the `bbox` {_shown(box)}, which is nowhere near its image{_of_size(image)}"
    return segmentation_problem(annotation.get("segmentation"), image)


def segmentation_problem(segmentation, image: dict) -> str | None:
    """It may be nothing, polygons, or an RLE of the image's size."""
    if not segmentation:
        return None
    if isinstance(segmentation, list):
        if not all(isinstance(polygon, list) and are_numbers(polygon) for polygon in segmentation):
            return "must have as its `segmentation` lists of finite numbers x, y, x, y, ... in pixels"
        # pycocotools walks along the outline, and takes memory for every step.
        if not all(are_near(polygon[::2], polygon[1::2], image) for polygon in segmentation):
            return f"has a polygon that is nowhere near its image{_of_size(image)}"
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


def are_near(xs: list, ys: list, image: dict) -> bool:
    """Whether points lie in an image, or no farther outside of it than it is large."""
    sides = (xs, image["width"]), (ys, image["height"])
    return all(-size <= value <= 2 * size for values, size in sides for value in values)


def is_id(value) -> bool:
    """Whether it is a whole number that fits into 64 bits, as the arrays of ids do."""
    return type(value) is int and -(2**63) <= value < 2**63


def are_numbers(values: list) -> bool:
    """Whether all are finite numbers."""
    return all(type(v) in (int, float) and abs(v) < sys.float_info.max for v in values)  # no NaN, and no 400 digits


def has_extent(annotation: dict) -> bool:
    """Whether an object has a box with an area and, if it has polygons, one with three corners."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list) and segmentation and not valid_polygons(segmentation):
        return False
    return annotation["bbox"][2] > 0 and annotation["bbox"][3] > 0


def valid_polygons(polygons: list) -> list:
    """Those with at least three corners, as Detectron2 has it."""
    return [polygon for polygon in polygons if len(polygon) >= 6 and len(polygon) % 2 == 0]


def _of_size(image: dict) -> str:
    return f" of {image['height']} x {image['width']} pixels"


def _shown(value) -> str:
    """A value in a message, not all of it if it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
