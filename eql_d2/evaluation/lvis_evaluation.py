"""LVIS's metrics as a Detectron2 evaluator."""

import json
import logging
import os
from collections.abc import Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from eql_d2.evaluation.lvis_metrics import MAX_DETS, METRICS, Detections, GroundTruth, evaluate_lvis

logger = logging.getLogger(__name__)

BACKENDS = ("eql_d2", "lvis")


class LVISEvaluator(DatasetEvaluator):
    """LVIS's metrics in percent, nan where there is no object: AP, AP50, AP75, APs/m/l, APr/c/f, AR@300, ARs/m/l@300.

    A model that detects nothing at all has 0 wherever there are objects, where Detectron2's
    evaluator has nan everywhere. Recalls are called "@300", as by the LVIS API, whatever the limit is.

    Predictions are kept as arrays. Into ``output_dir`` go lvis_instances_results.json, byte for byte
    Detectron2's, and instances_predictions.pth, which deviates: a list with a dict of tensors per
    image, since as Detectron2's list of dicts per detection LVIS val needs gigabytes of memory.

    Args:
        dataset_name: a registered dataset with ``json_file``, in LVIS's format, in its metadata.
        tasks: of "bbox" and "segm"; None is what the predictions have.
        distributed: gather the predictions of all processes to the main one.
        output_dir: folder for the predictions; None writes none.
        max_dets_per_image: None is LVIS's 300, -1 no limit.
        backend: "eql_d2" evaluates with ``evaluate_lvis``; "lvis", the reference, with the LVIS API: the
            same numbers, slower, and nan everywhere if there are no detections.

    Raises:
        ValueError: an unknown ``backend``.
        FileNotFoundError: no file at ``json_file``.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        backend: str = "eql_d2",
    ):
        if backend not in BACKENDS:
            raise ValueError(
                f"the LVIS backend must be one of {', '.join(BACKENDS)}, got {backend!r}: set TEST.LVIS_BACKEND"
            )
        self._backend = backend
        self._metadata = MetadataCatalog.get(dataset_name)
        self._json_file = PathManager.get_local_path(self._metadata.json_file)
        if not os.path.isfile(self._json_file):  # say so before the inference, not after it
            raise FileNotFoundError(
                f"no annotations at {self._json_file}, the json_file of dataset '{dataset_name}'"
            )
        self._tasks, self._distributed, self._output_dir = tasks, distributed, output_dir
        self._max_dets = MAX_DETS if max_dets_per_image is None else max_dets_per_image
        self.reset()

    def reset(self):
        self._predictions = []

    def process(self, inputs, outputs):
        for image, output in zip(inputs, outputs):
            if "instances" not in output:
                raise ValueError(
                    f"LVISEvaluator scores 'instances', and the model's outputs have {sorted(output)}: "
                    "detectron2.evaluation.LVISEvaluator scores proposals"
                )
            instances = output["instances"].to("cpu")
            self._predictions.append(_ImagePredictions.pack(instances, image["image_id"]))

    def evaluate(self):
        """Metrics of each task; None in other processes than the main one, {} without images or annotations."""
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = [p for part in comm.gather(predictions, dst=0) for p in part]
            if not comm.is_main_process():
                return None
        if not predictions:
            logger.warning("no images were predicted: no evaluation")
            return {}
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            _save(predictions, os.path.join(self._output_dir, "instances_predictions.pth"))
        predictions = [self._with_dataset_ids(p) for p in predictions]
        if self._output_dir:
            _write_json(
                predictions, os.path.join(self._output_dir, "lvis_instances_results.json")
            )
        return self._scores(predictions)

    def _scores(self, predictions: list) -> dict:
        with open(self._json_file) as file:
            dataset = json.load(file)
        if not dataset.get("annotations"):  # those of LVIS's test sets are not public
            logger.info("%s has no annotations: no evaluation", self._json_file)
            return {}
        if self._backend == "lvis":
            from lvis import LVIS

            truth, score = LVIS(self._json_file), _score_with_lvis_api
        else:
            truth, score = GroundTruth.load(dataset), _score_with_arrays
        results = {}
        for task in sorted(self._tasks or _tasks_of(predictions)):
            scores = score(truth, predictions, task, self._max_dets)
            results[task] = {k: 100 * v if v >= 0 else float("nan") for k, v in scores.items()}
            logger.info("LVIS metrics for %s:\n%s", task, create_small_table(results[task]))
        return results

    def _with_dataset_ids(self, predictions: "_ImagePredictions") -> "_ImagePredictions":
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if mapping is None:  # LVIS's own ids are 1 to K
            return predictions._replace(category_id=predictions.category_id + 1)
        dataset_id = {index: category_id for category_id, index in mapping.items()}
        ids = [dataset_id[index] for index in predictions.category_id.tolist()]
        return predictions._replace(category_id=np.array(ids, dtype=np.int64))


class _ImagePredictions(NamedTuple):
    """The n detections of an image as arrays, which take a small part of the memory of their dicts."""

    image_id: int
    category_id: np.ndarray  # (n,) int64
    bbox: np.ndarray  # (n, 4) x, y, w, h in pixels
    score: np.ndarray  # (n,)
    mask_size: list | None  # height, width of the masks, if there are any
    mask_counts: list | None  # n str, the RLEs' counts, or None for a model without masks

    @classmethod
    def pack(cls, instances: Instances, image_id) -> "_ImagePredictions":
        results = instances_to_coco_json(instances, image_id)
        rles = [r["segmentation"] for r in results] if instances.has("pred_masks") else None
        return cls(
            image_id=image_id,
            category_id=np.array([r["category_id"] for r in results], dtype=np.int64),
            bbox=_array([r["bbox"] for r in results], instances.pred_boxes.tensor).reshape(-1, 4),
            score=_array([r["score"] for r in results], instances.scores),
            mask_size=rles[0]["size"] if rles else None,
            mask_counts=None if rles is None else [rle["counts"] for rle in rles],
        )

    def unpack(self) -> list:
        """Detectron2's result dicts."""
        keys = ("category_id", "bbox", "score")
        columns = [self.category_id.tolist(), self.bbox.tolist(), self.score.tolist()]
        results = [{"image_id": self.image_id, **dict(zip(keys, row))} for row in zip(*columns)]
        for result, counts in zip(results, self.mask_counts or ()):
            result["segmentation"] = {"size": self.mask_size, "counts": counts}
        return results


def _array(values: list, like: torch.Tensor) -> np.ndarray:
    """Python numbers that came from a tensor, in a dtype that holds them exactly."""
    return np.array(values, dtype=np.float64 if like.dtype == torch.float64 else np.float32)


class _Masks(Sequence):
    """The masks of all detections as RLE dicts, each made when it is asked for."""

    def __init__(self, predictions: list):
        self._counts = [c for p in predictions for c in p.mask_counts or ()]
        self._sizes = [p.mask_size for p in predictions for _ in p.mask_counts or ()]

    def __len__(self):
        return len(self._counts)

    def __getitem__(self, index):
        return {"size": self._sizes[index], "counts": self._counts[index]}


def _save(predictions: list, path: str) -> None:
    """instances_predictions.pth: a dict of tensors and lists for each image, with the model's category indices."""
    tensors = [
        {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in p._asdict().items()}
        for p in predictions
    ]
    with PathManager.open(path, "wb") as file:
        torch.save(tensors, file)


def _write_json(predictions: list, path: str) -> None:
    """LVIS's results format, image by image: the whole as one string or list would be large."""
    logger.info("Saving results to %s", path)
    with PathManager.open(path, "w") as file:
        separator = "["
        for image in predictions:
            if len(image.score):
                file.write(separator + json.dumps(image.unpack())[1:-1])
                separator = ", "
        file.write("[]" if separator == "[" else "]")


def _tasks_of(predictions: list) -> tuple:
    has_masks = any(p.mask_counts is not None for p in predictions)
    return ("bbox", "segm") if has_masks else ("bbox",)


def _score_with_arrays(truth: GroundTruth, predictions: list, task: str, max_dets: int) -> dict:
    detections = Detections(
        image_id=np.repeat([p.image_id for p in predictions], [len(p.score) for p in predictions]),
        category_id=np.concatenate([p.category_id for p in predictions]),
        score=np.concatenate([p.score for p in predictions]),
        box=np.concatenate([p.bbox for p in predictions]),
        segmentation=_Masks(predictions) if task == "segm" else None,
    )
    return evaluate_lvis(truth, detections, task, max_dets).metrics()


def _score_with_lvis_api(truth, predictions: list, task: str, max_dets: int) -> dict:
    """``truth`` is an ``lvis.LVIS``."""
    from lvis import LVISEval, LVISResults

    results = [result for p in predictions for result in p.unpack()]
    if not results:  # the API would fail
        logger.warning("no detections in any image, which the LVIS API cannot evaluate")
        return dict.fromkeys(METRICS, -1.0)
    if task == "segm":
        for result in results:  # or the API would take the boxes' areas for the masks'
            del result["bbox"]
    with numpy_of_lvis_api():
        api = LVISEval(truth, LVISResults(truth, results, max_dets=max_dets), task)
        api.run()
    return {name: float(value) for name, value in api.get_results().items()}


class _NumpyWithFloat:
    """numpy as the LVIS API expects it, without touching the one everybody else uses."""

    float = float

    def __getattr__(self, name):
        return getattr(np, name)


@contextmanager
def numpy_of_lvis_api():
    """Within this context the LVIS API's evaluation finds ``np.float``, which numpy removed in 1.24."""
    import lvis.eval  # here, since it imports matplotlib and OpenCV

    lvis.eval.np = _NumpyWithFloat()
    try:
        yield
    finally:
        lvis.eval.np = np
