"""What export tools write otherwise than the format has it, made as the format has it.

CVAT and Datumaro leave optional keys there and empty, some write whole numbers as floats, Roboflow and Label Studio
count objects from 0, which the evaluations of COCO and LVIS never match, and boxes can reach far out of their image.
"""

import logging

logger = logging.getLogger(__name__)

OPTIONAL_TEXTS = ("coco_url", "flickr_url", "file_name")
WHOLE = {
    "images": ("id", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "iscrowd"),
    "categories": ("id",),
}


def normalise(json_file, data: dict) -> dict:
    """Change the content of an annotation file in place, and return it; whatever has another form is left alone.

    One log line says how many boxes and polygons were clipped; nothing else that is changed changes a meaning.
    """
    for part, keys in WHOLE.items():
        for entry in _entries(data, part):
            for key in keys:
                value = entry.get(key)
                if type(value) is float and value.is_integer():
                    entry[key] = int(value)
    for image in _entries(data, "images"):
        for key in OPTIONAL_TEXTS:
            if key in image and not image[key]:
                del image[key]
    annotations = _entries(data, "annotations")
    for annotation in annotations:
        if annotation.get("iscrowd", 0) is None:
            annotation["iscrowd"] = 0
    if any(annotation.get("id") == 0 for annotation in annotations):
        for annotation in annotations:
            if type(annotation.get("id")) is int:
                annotation["id"] += 1
    sizes = {image.get("id"): image for image in _entries(data, "images") if _is_hashable(image.get("id"))}
    clipped = sum(_clip_far(annotation, sizes) for annotation in annotations)
    if clipped:
        logger.warning("%s: clipped %d objects that reach far out of their image", json_file, clipped)
    return data


def _entries(data: dict, part: str) -> list[dict]:
    entries = data.get(part)
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _is_hashable(value) -> bool:
    return isinstance(value, int | str)


def _clip_far(annotation: dict, images: dict) -> bool:
    """Clip a box, and its polygons, that overlap the image but reach farther out of it than it is large."""
    image_id, box = annotation.get("image_id"), annotation.get("bbox")
    image = images.get(image_id) if _is_hashable(image_id) else None
    if image is None or not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        return False
    sides = image.get("width"), image.get("height")
    if not all(type(side) is int and side > 0 for side in sides) or box[2] < 0 or box[3] < 0:
        return False
    (x0, x1), (y0, y1) = (
        (max(low, 0), min(low + length, side)) for low, length, side in zip(box[:2], box[2:], sides, strict=True)
    )
    polygons = annotation.get("segmentation")
    polygons = polygons if isinstance(polygons, list) else []
    outlines = [p for p in polygons if isinstance(p, list) and all(map(_is_number, p))]
    corners = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    if x0 >= x1 or y0 >= y1 or not any(_is_far(outline, *sides) for outline in (corners, *outlines)):
        return False
    annotation["bbox"] = [x0, y0, x1 - x0, y1 - y0]
    if outlines:
        clipped = [clip_polygon(p, *sides) if p in outlines else p for p in polygons]
        annotation["segmentation"] = [p for p in clipped if p] or polygons
    return True


def _is_far(outline: list, width: int, height: int) -> bool:
    """Whether a point x, y, x, y, ... lies farther outside of an image than that is large."""
    return any(
        not -side <= value <= 2 * side
        for values, side in ((outline[::2], width), (outline[1::2], height))
        for value in values
    )


def _is_number(value) -> bool:
    return type(value) in (int, float) and abs(value) < float("inf")


def clip_polygon(polygon: list, width: float, height: float) -> list:
    """The part of a polygon x, y, x, y, ... inside of an image (Sutherland and Hodgman); [] if there is none."""
    points = list(zip(polygon[::2], polygon[1::2], strict=False))
    for axis, limit, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        kept = []
        for before, point in zip(points[-1:] + points[:-1], points, strict=True):
            inside, was_inside = (sign * (p[axis] - limit) >= 0 for p in (point, before))
            if inside != was_inside:
                share = (limit - before[axis]) / (point[axis] - before[axis])
                crossing = [b + share * (p - b) for b, p in zip(before, point, strict=True)]
                crossing[axis] = limit  # not one rounding beside it
                kept.append(tuple(crossing))
            if inside:
                kept.append(point)
        points = kept
    return [coordinate for point in points for coordinate in point]
