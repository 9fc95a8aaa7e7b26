"""What a model predicted, image by image, as arrays: they take a small part of the memory of a dict per detection."""

import json
import logging
import os
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii
from typing import NamedTuple

import numpy as np
import orjson
import torch
from detectron2.structures import BoxMode, Instances
from pycocotools.mask import encode

from eql_d2.data.whole_files import written_whole
from eql_d2.errors import InputError, one_line
from eql_d2.evaluation.lvis_metrics import Detections, best_of_each

logger = logging.getLogger(__name__)

FILE_NAME = "instances_predictions.pth"  # in an evaluation's folder


class ImagePredictions(NamedTuple):
    """The n detections of an image."""

    image_id: int
    category_id: np.ndarray  # (n,) int64
    bbox: np.ndarray  # (n, 4) x, y, w, h in pixels
    score: np.ndarray  # (n,)
    mask_size: list | None  # height, width of the masks, if there are any
    mask_counts: list | None  # n str, the RLEs' counts, or None for a model without masks

    def select(self, keep: np.ndarray) -> "ImagePredictions":
        """Those that (n,) bool ``keep`` says."""
        counts = self.mask_counts
        return self._replace(
            category_id=self.category_id[keep],
            bbox=self.bbox[keep],
            score=self.score[keep],
            mask_counts=None if counts is None else [counts[i] for i in np.flatnonzero(keep)],
        )

    def best(self, limit: int) -> "ImagePredictions":
        """The ``limit`` highest scores, the first of equal ones; -1 is all."""
        keep = best_of_each(np.zeros(len(self.score), dtype=np.int64), self.score, limit)
        return self if keep.all() else self.select(keep)

    @classmethod
    def pack(cls, instances: Instances, image_id) -> "ImagePredictions":
        boxes, scores = instances.pred_boxes.tensor.numpy(), instances.scores.numpy()
        rles = rles_of(instances.pred_masks) if instances.has("pred_masks") else None
        return cls(
            image_id=image_id,
            category_id=instances.pred_classes.numpy().astype(np.int64),
            bbox=BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS),
            score=scores,
            mask_size=rles[0]["size"] if rles else None,
            mask_counts=None if rles is None else [rle["counts"] for rle in rles],
        )

    @classmethod
    def of_saved(cls, image: dict) -> "ImagePredictions":
        """Of a dict of tensors and lists, or Detectron2's that has a dict for each detection."""
        if "instances" not in image:
            return cls(**{k: v.numpy() if torch.is_tensor(v) else v for k, v in image.items()})
        results = image["instances"]
        rles = [result["segmentation"] for result in results if "segmentation" in result]
        return cls(
            image_id=image["image_id"],
            category_id=np.array([result["category_id"] for result in results], dtype=np.int64),
            bbox=np.array([result["bbox"] for result in results]).reshape(-1, 4),
            score=np.array([result["score"] for result in results]),
            mask_size=rles[0]["size"] if rles else None,
            mask_counts=[rle["counts"] for rle in rles] if rles else None,
        )

    def with_dataset_ids(self, mapping: dict | None) -> "ImagePredictions":
        """The model's category indices replaced by the dataset's ids.

        Args:
            mapping: ``thing_dataset_id_to_contiguous_id``; None is LVIS's own ids, 1 to K.
        """
        if mapping is None:
            return self._replace(category_id=self.category_id + 1)
        dataset_id = {index: category_id for category_id, index in mapping.items()}
        ids = [dataset_id[index] for index in self.category_id.tolist()]
        return self._replace(category_id=np.array(ids, dtype=np.int64))

    def unpack(self) -> list:
        """Detectron2's result dicts."""
        keys = ("category_id", "bbox", "score")
        columns = [self.category_id.tolist(), self.bbox.tolist(), self.score.tolist()]
        results = [{"image_id": self.image_id, **dict(zip(keys, row))} for row in zip(*columns)]
        for result, counts in zip(results, self.mask_counts or ()):
            result["segmentation"] = {"size": self.mask_size, "counts": counts}
        return results

    def json(self) -> str:
        """:meth:`unpack` as ``json.dumps`` writes it, without the brackets around, in a third of its time."""
        numbers = np.concatenate([self.bbox.ravel(), self.score]).astype(np.float64)
        size = np.abs(numbers)
        if not ((size == 0) | ((size >= 1e-4) & (size < 1e16))).all():  # Python writes these with other exponents
            return json.dumps(self.unpack())[1:-1]
        n = len(self.score)
        text = orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].decode().split(",")
        columns = [self.category_id.tolist(), *(text[i : 4 * n : 4] for i in range(4)), text[4 * n :]]
        start = f'{{"image_id": {json.dumps(self.image_id)}, "category_id": '
        rows = [f'{start}{c}, "bbox": [{x}, {y}, {w}, {h}], "score": {s}' for c, x, y, w, h, s in zip(*columns)]
        if self.mask_counts:
            size = json.dumps(self.mask_size)
            counts = map(encode_basestring_ascii, self.mask_counts)
            rows = [f'{row}, "segmentation": {{"size": {size}, "counts": {c}}}' for row, c in zip(rows, counts)]
        return "}, ".join(rows) + "}"


def rles_of(masks) -> list:
    """COCO's compressed RLEs of the masks of an image, with text as counts.

    Args:
        masks: (n, H, W) bool, or what has its own ``rles()`` (:class:`eql_d2.modeling.masks.PastedMasks`).
    """
    if hasattr(masks, "rles"):
        return masks.rles()
    columns = np.asfortranarray(np.asarray(masks, dtype=np.uint8).transpose(1, 2, 0))
    return [{"size": rle["size"], "counts": rle["counts"].decode("ascii")} for rle in encode(columns)]


class Masks(Sequence):
    """The masks of all detections as RLE dicts, each made when it is asked for."""

    def __init__(self, predictions: list):
        self._counts = [c for p in predictions for c in p.mask_counts or ()]
        self._sizes = [p.mask_size for p in predictions for _ in p.mask_counts or ()]

    def __len__(self):
        return len(self._counts)

    def __getitem__(self, index):
        return {"size": self._sizes[index], "counts": self._counts[index]}


def save(predictions: list, path: str) -> None:
    """:data:`FILE_NAME`: a dict of tensors and lists for each image, with the model's category indices."""
    tensors = [
        {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in p._asdict().items()}
        for p in predictions
    ]
    with written_whole(path, "wb") as file:
        torch.save(tensors, file)


def load(folder) -> list[ImagePredictions]:
    """What an evaluation has saved in its folder: :func:`save`, or Detectron2's evaluators.

    Raises:
        InputError: no such file, or one that is half-written or of another format.
    """
    path = os.path.join(folder, FILE_NAME)
    if not os.path.isfile(path):
        raise InputError(f"there are no predictions at {path}: was the run evaluated to its end?")
    try:
        return [ImagePredictions.of_saved(image) for image in torch.load(path, weights_only=True)]
    except Exception as error:  # torch.load of a cut file raises RuntimeError, UnpicklingError, EOFError, ...
        raise InputError(f"{path} is half-written or of another format: {one_line(error)}") from error


def write_json(predictions: list, path: str) -> None:
    """LVIS's results format, as ``json.dump`` writes it: image by image, since the whole would be large."""
    logger.info("Saving results to %s", path)
    with written_whole(path) as file:
        separator = "["
        for image in predictions:
            if len(image.score):
                file.write(separator + image.json())
                separator = ", "
        file.write("[]" if separator == "[" else "]")


def tasks_of(predictions: list) -> tuple:
    has_masks = any(p.mask_counts is not None for p in predictions)
    return ("bbox", "segm") if has_masks else ("bbox",)


def as_detections(predictions: list) -> Detections:
    """Those of all images, as the metrics take them."""
    return Detections(
        image_id=np.repeat([p.image_id for p in predictions], [len(p.score) for p in predictions]),
        category_id=np.concatenate([p.category_id for p in predictions]),
        score=np.concatenate([p.score for p in predictions]),
        box=np.concatenate([p.bbox for p in predictions]),
        segmentation=Masks(predictions) if "segm" in tasks_of(predictions) else None,
    )
