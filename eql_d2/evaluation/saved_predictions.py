"""Detections that an evaluation has saved, of some images, and the dataset they belong to: what drawing them takes."""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from eql_d2.errors import InputError, one_line

FILE_NAME = "instances_predictions.pth"


class SavedDetections(NamedTuple):
    """The n detections of an image."""

    boxes: torch.Tensor  # (n, 4) x0, y0, x1, y1 in pixels
    scores: torch.Tensor  # (n,)
    classes: torch.Tensor  # (n,) int64, the model's category indices


def read_detections(folder: Path, image_ids: Collection) -> dict[object, SavedDetections]:
    """image id -> detections, from the `instances_predictions.pth` in an evaluation's folder.

    Both forms are read: LVISEvaluator's dict of tensors per image, and Detectron2's dict per detection.

    Raises:
        InputError: no such file, or one that is half-written or of another format.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise InputError(f"there are no predictions at {path}")
    try:
        images = torch.load(path, weights_only=True)
        return {image["image_id"]: _unpack(image) for image in images if image["image_id"] in image_ids}
    except Exception as error:  # torch.load of a cut file raises RuntimeError, UnpicklingError, EOFError, ...
        raise InputError(f"{path} is half-written or of another format: {one_line(error)}") from error


def _unpack(image: dict) -> SavedDetections:
    if "instances" in image:
        image = {key: [r[key] for r in image["instances"]] for key in ("bbox", "score", "category_id")}
    boxes = torch.as_tensor(image["bbox"], dtype=torch.float32).reshape(-1, 4).clone()
    boxes[:, 2:] += boxes[:, :2]  # from x, y, width, height
    scores = torch.as_tensor(image["score"], dtype=torch.float32)
    return SavedDetections(boxes, scores, torch.as_tensor(image["category_id"], dtype=torch.int64))


def load_dataset(name: str) -> tuple[list[dict], list[str]]:
    """Detectron2's dicts of a registered dataset with annotations, and the names of its categories.

    Raises:
        InputError: it is not registered, or its files are not there.
    """
    if name not in DatasetCatalog.list():
        raise InputError(f"dataset '{name}' is not registered")
    try:
        dicts = DatasetCatalog.get(name)
    except (OSError, KeyError, AssertionError) as error:
        raise InputError(f"dataset '{name}' cannot be read (is DETECTRON2_DATASETS set?): {error}") from error
    return dicts, list(MetadataCatalog.get(name).get("thing_classes", ()))  # some are set by loading
