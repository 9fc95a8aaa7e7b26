"""LVIS's metrics as a Detectron2 evaluator."""

import logging
import os
from collections.abc import Sequence
from unittest.mock import patch

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from eql_d2.data.annotations import read_truth
from eql_d2.errors import InputError
from eql_d2.evaluation.fixed_ap import BestOfEachCategory, best_of_all
from eql_d2.evaluation.lvis_metrics import MAX_DETS, METRICS, GroundTruth, match_lvis
from eql_d2.evaluation.predictions import ImagePredictions, as_detections, save, tasks_of, write_json
from eql_d2.evaluation.registry import EVALUATOR_REGISTRY
from eql_d2.evaluation.tail_analysis import TailAnalysis

logger = logging.getLogger(__name__)

BACKENDS = ("eql_d2", "lvis")


class LongTailLVISEvaluator(DatasetEvaluator):
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
        analysis: what else to compute, write and log, with "eql_d2"; None is nothing.
        fixed_ap: add fixed AP to the analysis. Then all that a model predicts in an image goes into fixed AP, and the
            best ``max_dets_per_image`` of it into the files and the other metrics.

    Raises:
        InputError: an unknown ``backend``, or fixed AP without an analysis.
        InputError: no file at ``json_file``.
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
        analysis: TailAnalysis | None = None,
        fixed_ap: bool = False,
    ):
        if backend not in BACKENDS:
            raise InputError(
                f"the LVIS backend must be one of {', '.join(BACKENDS)}, got {backend!r}: set TEST.LVIS_BACKEND"
            )
        if fixed_ap and (analysis is None or backend != "eql_d2"):
            raise InputError("fixed AP is part of the analysis, which TEST.LVIS_BACKEND 'lvis' does not make")
        self._backend, self._analysis, self._fixed_ap = backend, analysis, fixed_ap
        self._metadata = MetadataCatalog.get(dataset_name)
        self._json_file = PathManager.get_local_path(self._metadata.json_file)
        if not os.path.isfile(self._json_file):  # say so before the inference, not after it
            raise InputError(f"no annotations at {self._json_file}, the json_file of dataset '{dataset_name}'")
        self._tasks, self._distributed, self._output_dir = tasks, distributed, output_dir
        self._max_dets = MAX_DETS if max_dets_per_image is None else max_dets_per_image
        self.reset()

    def reset(self):
        self._predictions = []
        self._best = BestOfEachCategory()

    def process(self, inputs, outputs):
        for image, output in zip(inputs, outputs):
            if "instances" not in output:
                raise InputError(
                    f"{type(self).__name__} scores 'instances', and the model's outputs have {sorted(output)}: "
                    "detectron2.evaluation.LVISEvaluator scores proposals"
                )
            predictions = ImagePredictions.pack(output["instances"].to("cpu"), image["image_id"])
            if self._fixed_ap:
                self._best.add(predictions)
                predictions = predictions.best(self._max_dets)
            self._predictions.append(predictions)

    def evaluate(self):
        """Metrics of each task; None in other processes than the main one, {} without images or annotations."""
        predictions, best = self._predictions, [self._best.images()]
        if self._distributed:
            comm.synchronize()
            predictions = [p for part in comm.gather(predictions, dst=0) for p in part]
            best = comm.gather(best[0], dst=0)
            if not comm.is_main_process():
                return None
        if not predictions:
            logger.warning("no images were predicted: no evaluation")
            return {}
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            save(predictions, os.path.join(self._output_dir, "instances_predictions.pth"))
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id")
        predictions = [p.with_dataset_ids(mapping) for p in predictions]
        if self._output_dir:
            write_json(predictions, os.path.join(self._output_dir, "lvis_instances_results.json"))
        best = [p.with_dataset_ids(mapping) for p in best_of_all(best)]
        return self._scores(predictions, best)

    def _scores(self, predictions: list, best: list) -> dict:
        dataset = read_truth(self._json_file)
        if not dataset["annotations"]:  # those of LVIS's test sets are not public
            logger.info("%s has no annotations: no evaluation", self._json_file)
            return {}
        tasks = sorted(self._tasks or tasks_of(predictions))
        if self._backend == "lvis":
            truth = lvis_api(self._json_file)
            metrics = {t: _score_with_lvis_api(truth, predictions, t, self._max_dets) for t in tasks}
            return {task: _in_percent(of_task, task) for task, of_task in metrics.items()}
        truth, detections = GroundTruth.load(dataset), as_detections(predictions)
        most = as_detections(best) if self._fixed_ap else None
        results = {}
        for task in tasks:
            matching = match_lvis(truth, detections, task, self._max_dets)
            results[task] = _in_percent(matching.curves.metrics(), task)
            if self._analysis is not None:
                results[task] = self._analysis.run(matching, results[task], most)
        return results


LVISEvaluator = LongTailLVISEvaluator  # as a LazyConfig's `config.yaml` of an earlier version names it


@EVALUATOR_REGISTRY.register()
def lvis(dataset_name: str, **settings) -> LongTailLVISEvaluator:
    return LongTailLVISEvaluator(dataset_name, **settings)


def _in_percent(metrics: dict, task: str) -> dict:
    results = {k: 100 * v if v >= 0 else float("nan") for k, v in metrics.items()}
    logger.info("LVIS metrics for %s:\n%s", task, create_small_table(results))
    return results


def lvis_api(json_file: str):
    """An ``lvis.LVIS`` of what our reader makes of a file."""
    from lvis import LVIS

    class ReadLVIS(LVIS):
        def _load_json(self, path):
            data = read_truth(path)
            # Copies, since the API writes into them.
            return {**data, "annotations": [dict(annotation) for annotation in data["annotations"]]}

    return ReadLVIS(json_file)


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


def numpy_of_lvis_api():
    """Within this context the LVIS API's evaluation finds ``np.float``, which numpy removed in 1.24."""
    import lvis.eval  # here, since it imports matplotlib and OpenCV

    return patch.object(lvis.eval, "np", _NumpyWithFloat())
