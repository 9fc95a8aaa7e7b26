"""Detections that an evaluation has saved, of some images, and the dataset they belong to: what drawing them takes."""

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from eql_d2.errors import InputError
from eql_d2.evaluation.predictions import ImagePredictions, load


class SavedDetections(NamedTuple):
    """The n detections of an image."""

    boxes: torch.Tensor  # (n, 4) x0, y0, x1, y1 in pixels
    scores: torch.Tensor  # (n,)
    classes: torch.Tensor  # (n,) int64, the model's category indices

    @classmethod
    def of(cls, image: ImagePredictions) -> "SavedDetections":
        boxes = torch.tensor(image.bbox, dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]  # from x, y, width, height
        return cls(boxes, torch.tensor(image.score, dtype=torch.float32), torch.tensor(image.category_id))


def read_detections(folder: Path, image_ids: Collection) -> dict[object, SavedDetections]:
    """image id -> detections, of the evaluation in a folder; see :func:`eql_d2.evaluation.predictions.load`."""
    return {p.image_id: SavedDetections.of(p) for p in load(folder) if p.image_id in image_ids}


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
