"""How often, and how evenly, an annotation file has each category; needs no torch."""

import numpy as np

from eql_d2.data.annotations import read_annotations, trained_objects
from eql_d2.data.fractal import fractal_dimensions
from eql_d2.errors import InputError


def count_annotations(json_file, category_order: dict | None = None) -> dict:
    """Count images and instances of each category; see :meth:`ClassFrequencies.from_annotations`.

    Returns:
        dict with ``image_count`` and ``instance_count`` (K int64 each), ``num_images``, ``groups`` (the file's own
        letters where every category has one, else ""), and ``fractal_dimension`` (K float64).
    """
    data = read_annotations(json_file)
    categories = sorted(data["categories"], key=lambda c: c["id"])
    order = category_order or {c["id"]: i for i, c in enumerate(categories)}
    annotations = trained_objects(json_file, data)
    if not annotations:
        raise InputError(f"{json_file} has no object that can be used: an empty training set")
    unknown = {a["category_id"] for a in annotations} - order.keys()
    if unknown:
        raise InputError(
            f"{json_file}: annotations use category ids {sorted(unknown)[:5]} that `categories` does not list"
        )
    K = len(order)
    classes = np.fromiter((order[a["category_id"]] for a in annotations), np.int64, len(annotations))
    _, images = np.unique([a["image_id"] for a in annotations], return_inverse=True)
    pairs = np.sort(images.astype(np.int64) * K + classes)
    image_class_pairs = pairs[np.diff(pairs, prepend=-1) > 0]  # faster than np.unique
    ordered = sorted((c for c in categories if c["id"] in order), key=lambda c: order[c["id"]])
    letters = [c.get("frequency") for c in ordered]
    return {
        "image_count": np.bincount(image_class_pairs % K, minlength=K),
        "instance_count": np.bincount(classes, minlength=K),
        "num_images": int(images.max()) + 1,
        "fractal_dimension": fractal_dimensions(*_centres(data["images"], annotations), classes, K),
        "groups": "".join(letters) if all(x in ("r", "c", "f") for x in letters) else "",
    }


def _centres(images: list[dict], annotations: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the centres of the objects' boxes, in units of their image's width and height."""
    size = {image["id"]: (image["width"], image["height"]) for image in images}
    sides = np.array([size[a["image_id"]] for a in annotations], dtype=np.float64).reshape(-1, 2)
    boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    x, y = ((boxes[:, :2] + boxes[:, 2:] / 2) / sides).T
    return x, y
