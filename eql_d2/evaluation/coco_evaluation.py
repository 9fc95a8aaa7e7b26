"""COCO's metrics as a Detectron2 evaluator, with the analysis that LVIS's has."""

import io
from contextlib import redirect_stdout
from itertools import chain
from unittest.mock import patch

import detectron2.evaluation.coco_evaluation as detectron2s
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from eql_d2.data.annotations import read_truth
from eql_d2.data.whole_files import folder_written_whole
from eql_d2.evaluation.fixed_ap import BestOfEachCategory, best_of_all
from eql_d2.evaluation.lvis_metrics import COCO_MAX_DETS, GroundTruth, match_lvis
from eql_d2.evaluation.predictions import ImagePredictions, as_detections, rles_of
from eql_d2.evaluation.registry import EVALUATOR_REGISTRY
from eql_d2.evaluation.tail_analysis import TailAnalysis


class LongTailCOCOEvaluator(COCOEvaluator):
    """Detectron2's COCOEvaluator, whose metrics stay as they are, and a :class:`TailAnalysis`.

    The analysis goes by COCO's rules: every category counts in every image, crowd regions are ignored, and of each
    image and category the best 100 detections are looked at. So the mean of its AP by category is COCO's AP.

    Args:
        dataset_name: as ``COCOEvaluator`` takes it.
        analysis: what else to compute, write and log.
        fixed_ap: add fixed AP. Then all that a model predicts in an image goes into fixed AP, and the best
            ``max_dets_per_image`` of it into everything else.
        max_dets_per_image: how many, with fixed AP, a model would keep of an image without it; -1 is all.
        kwargs: of ``COCOEvaluator``.
    """

    def __init__(
        self,
        dataset_name: str,
        analysis: TailAnalysis,
        fixed_ap: bool = False,
        max_dets_per_image: int = -1,
        **kwargs,
    ):
        with patch.object(detectron2s, "COCO", coco_api):  # which it reads its annotation file by
            super().__init__(dataset_name, **kwargs)
        self._analysis, self._fixed_ap, self._limit = analysis, fixed_ap, max_dets_per_image

    def reset(self):
        super().reset()
        self._best = BestOfEachCategory()

    def process(self, inputs, outputs):
        if self._fixed_ap:
            for image, output in zip(inputs, outputs):
                instances = output["instances"].to("cpu")
                self._best.add(ImagePredictions.pack(instances, image["image_id"]))
            outputs = [{"instances": best_instances(output["instances"], self._limit)} for output in outputs]
        for image, output in zip(inputs, outputs):
            self._process_image(image, output)

    def _process_image(self, image, output):
        """As Detectron2's; masks become RLEs without a full-size picture of each."""
        instances = output.get("instances")
        if instances is None or not instances.has("pred_masks"):
            return super().process([image], [output])
        fields = instances.get_fields()
        masks = rles_of(fields["pred_masks"].to("cpu"))
        others = {name: value for name, value in fields.items() if name != "pred_masks"}
        super().process([image], [{**output, "instances": Instances(instances.image_size, **others)}])
        for result, rle in zip(self._predictions[-1]["instances"], masks):
            result["segmentation"] = rle

    def evaluate(self, img_ids=None):
        """As Detectron2's, of the images of ``img_ids``, which are analysed only where they are all (None)."""
        best = self._best.images()
        self._gathered = best_of_all(comm.gather(best, dst=0) if self._distributed else [best])
        if not self._output_dir or not comm.is_main_process():
            return super().evaluate(img_ids)
        with folder_written_whole(self._output_dir) as unfinished, patch.object(self, "_output_dir", unfinished):
            return super().evaluate(img_ids)

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        """Detectron2's, which has nan where nothing is detected, and takes the classes to be in their ids' order.

        Such a model has 0 where there are objects, as in the analysis.
        """
        if coco_eval is None:
            coco_eval = evaluated_without_detections(self._coco_api, iou_type)
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if class_names is not None and mapping is not None:
            class_names = [class_names[mapping[i]] for i in sorted(mapping)]
        return super()._derive_coco_results(coco_eval, iou_type, class_names)

    def _eval_predictions(self, predictions, img_ids=None):
        """Detectron2's, which fills ``self._results`` and puts the dataset's category ids into the predictions."""
        super()._eval_predictions(predictions, img_ids)
        if img_ids is not None or not self._results:
            return
        results = list(chain.from_iterable(p["instances"] for p in predictions))
        truth = GroundTruth.load(self._coco_api.dataset, federated=False)
        mapping = self._metadata.get("thing_dataset_id_to_contiguous_id")
        most = as_detections([p.with_dataset_ids(mapping) for p in self._gathered]) if self._fixed_ap else None
        for task in {"bbox", "segm"} & set(self._results):
            matching = match_lvis(truth, results, task, COCO_MAX_DETS)
            self._results[task] = self._analysis.run(matching, self._results[task], most)


@EVALUATOR_REGISTRY.register()
def coco(dataset_name: str, *, backend: str, **settings) -> LongTailCOCOEvaluator:  # noqa: ARG001 (LVIS's)
    return LongTailCOCOEvaluator(dataset_name, use_fast_impl=False, **settings)


def evaluated_without_detections(truth: COCO, iou_type: str) -> COCOeval:
    """pycocotools' evaluation of no detections, which its own reader of results refuses."""
    nothing = COCO()
    nothing.dataset = {**truth.dataset, "annotations": []}
    with redirect_stdout(io.StringIO()):
        nothing.createIndex()
        evaluation = COCOeval(truth, nothing, iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def coco_api(json_file: str) -> COCO:
    """pycocotools' COCO of what our reader makes of a file; without objects, as of a test set, it is not evaluated."""
    data, api = read_truth(json_file), COCO()
    api.dataset = {key: value for key, value in data.items() if key != "annotations"}
    if data["annotations"]:  # copies, since pycocotools writes into them; it asks each for `iscrowd`
        api.dataset["annotations"] = [{"iscrowd": 0, **annotation} for annotation in data["annotations"]]
    with redirect_stdout(io.StringIO()):
        api.createIndex()
    return api


def best_instances(instances, limit: int):
    """The ``limit`` instances with the highest scores; -1 is all."""
    if not 0 <= limit < len(instances):
        return instances
    return instances[instances.scores.argsort(descending=True, stable=True)[:limit]]
