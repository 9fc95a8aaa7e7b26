"""Annotations and detections in LVIS's format, made by random numbers: of its categories, and of any size."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
from detectron2.data.datasets.lvis import get_lvis_instances_meta
from PIL import Image
from pycocotools.mask import frPyObjects

K, HEIGHT, WIDTH = 1203, 480, 640
CATEGORIES = [{"id": k + 1, "name": f"c{k}", "frequency": "fcr"[k // 401]} for k in range(K)]
PROBABILITY = 1 / np.arange(1, K + 1) ** 0.9  # of a category
PROBABILITY /= PROBABILITY.sum()

# Of an annotation file that is only read.
SIDE = 64  # of its square images
MOST_LINKS = 30_000  # to one file; file systems have a limit


def synthetic_images(num_images: int, num_boxes: int) -> Iterator[tuple[dict, list[dict], tuple]]:
    """Of each image its entry, the annotations, and boxes (n, 4), category ids (n,) and scores (n,) of detections.

    An image has 12 objects on average, of 1 to 7 categories, and about 10 categories that are known to be absent. Of
    its detections 40 % lie near an object and two in three of these have its category; the others are anywhere,
    of any category.
    """
    rng = np.random.default_rng(0)
    draw = functools.partial(rng.choice, np.arange(1, K + 1), p=PROBABILITY)
    made = 0
    for image_id in range(1, num_images + 1):
        present = draw(rng.integers(1, 8))
        num_objects = max(1, rng.poisson(12))
        categories, boxes = rng.choice(present, num_objects), random_boxes(num_objects, rng)
        image = {
            "id": image_id,
            "height": HEIGHT,
            "width": WIDTH,
            "neg_category_ids": np.setdiff1d(draw(12, replace=False), present).tolist(),
            "not_exhaustive_category_ids": present[: rng.integers(0, 2)].tolist(),
        }
        annotations = [
            {
                "id": made + i,
                "image_id": image_id,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "segmentation": [corners(box)],
            }
            for i, (box, category) in enumerate(zip(boxes.tolist(), categories.tolist()), start=1)
        ]
        made += num_objects
        yield image, annotations, synthetic_detections(num_boxes, boxes, categories, draw, rng)


def synthetic_detections(n: int, objects: np.ndarray, categories: np.ndarray, draw, rng) -> tuple:
    """Boxes (n, 4), categories (n,) and scores (n,) in an image with these objects (num_objects, 4)."""
    near = rng.integers(0, len(objects), int(0.4 * n))
    noise = rng.normal(0, 0.15, (len(near), 4)) * np.tile(objects[near, 2:], 2)
    moved = np.maximum(objects[near] + noise, [0, 0, 1, 1])
    found = draw(n)
    right = np.flatnonzero(rng.uniform(size=len(near)) < 2 / 3)
    found[right] = categories[near[right]]
    boxes = np.concatenate([moved, random_boxes(n - len(near), rng)])
    return boxes, found, rng.beta(1, 8, n)


def random_boxes(n: int, rng) -> np.ndarray:
    """(n, 4) x, y, w, h in an image; sides of 8 to 300 px, log-uniform."""
    size = np.exp(rng.uniform(np.log(8), np.log(300), (n, 2)))
    return np.concatenate([rng.uniform(0, 1, (n, 2)) * ([WIDTH, HEIGHT] - size), size], axis=1)


def corners(box: list) -> list:
    """Polygon of a box (x, y, w, h)."""
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def rles_of(boxes: np.ndarray) -> list[dict]:
    """(n, 4) boxes as masks."""
    return frPyObjects([corners(box) for box in boxes.tolist()], HEIGHT, WIDTH)


def synthetic_lvis(num_images: int, num_boxes: int, with_masks: bool) -> tuple[dict, list]:
    """All annotations, and the detections as results, with a box or a mask each."""
    truth: dict = {"images": [], "annotations": [], "categories": CATEGORIES}
    results = []
    for image, annotations, (boxes, categories, scores) in synthetic_images(num_images, num_boxes):
        truth["images"].append(image)
        truth["annotations"] += annotations
        key, places = ("segmentation", rles_of(boxes)) if with_masks else ("bbox", boxes.tolist())
        results += [
            {"image_id": image["id"], "category_id": category, "score": score, key: place}
            for category, score, place in zip(categories.tolist(), scores.tolist(), places)
        ]
    return truth, results


def write_annotations(file: Path, num_images: int, num_objects: int, corners_of_each: int) -> None:
    """In LVIS v1's format, with its categories, of objects in no order of images."""
    rng = np.random.default_rng(0)
    names = get_lvis_instances_meta("lvis_v1")["thing_classes"]
    images = [
        {
            "id": i,
            "height": SIDE,
            "width": SIDE,
            "coco_url": f"http://images.cocodataset.org/train2017/{i:012d}.jpg",
            "neg_category_ids": [1, 2, 3],
            "not_exhaustive_category_ids": [],
        }
        for i in range(num_images)
    ]
    angle = np.linspace(0, 2 * np.pi, corners_of_each, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1).ravel()
    category_ids = (rng.choice(K, num_objects, p=PROBABILITY) + 1).tolist()
    image_ids = rng.integers(0, num_images, num_objects).tolist()
    radius = rng.integers(2, SIDE // 4, num_objects)
    centre = rng.integers(SIDE // 4, SIDE * 3 // 4, (num_objects, 2))
    with open(file, "wb") as f:
        categories = [{**category, "name": name} for category, name in zip(CATEGORIES, names, strict=True)]
        f.write(orjson.dumps({"categories": categories, "images": images})[:-1] + b', "annotations": [')
        for n in range(num_objects):
            r, (x, y) = int(radius[n]), centre[n].tolist()
            annotation = {
                "id": n + 1,
                "image_id": image_ids[n],
                "category_id": category_ids[n],
                "bbox": [x - r, y - r, 2 * r, 2 * r],
                "area": 3.1 * r * r,
                "segmentation": [np.round(circle * r + np.tile([x, y], corners_of_each), 2).tolist()],
            }
            f.write((b", " if n else b"") + orjson.dumps(annotation))
        f.write(b"]}")


def link_images(folder: Path, num_images: int) -> None:
    """Files for all images of :func:`write_annotations`, which are looked for before a run; few of them are read."""
    folder.mkdir(exist_ok=True)
    for i in range(num_images):
        path = folder / f"{i:012d}.jpg"
        if i % MOST_LINKS == 0:
            Image.new("RGB", (SIDE, SIDE)).save(path)
            source = path
        elif not path.exists():
            os.link(source, path)
