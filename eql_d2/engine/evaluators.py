"""From a config to the evaluator of a dataset."""

import logging
import os
from contextlib import contextmanager

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers

from eql_d2.data import ClassFrequencies
from eql_d2.data.frequencies import FrequenciesNotFound, TailRule
from eql_d2.drawing.picture import PredictionPicture
from eql_d2.engine.checks import check_evaluator_type, check_num_classes
from eql_d2.evaluation.coco_evaluation import AnalysedCOCOEvaluator
from eql_d2.evaluation.lvis_evaluation import LVISEvaluator
from eql_d2.evaluation.tail_analysis import TailAnalysis
from eql_d2.losses import CLS_LOSS_REGISTRY
from eql_d2.losses.hyper_parameters import tail_rule

logger = logging.getLogger(__name__)

PICTURE = "ground_truth_and_predictions.png"


def build_evaluator(cfg, dataset_name: str, output_dir: str) -> DatasetEvaluator:
    """The evaluator that the dataset's ``evaluator_type`` names, and the picture of its rarest objects.

    With fixed AP the model must keep as many detections as :func:`detections_for_fixed_ap` makes it.

    Raises:
        InputError: a type other than "lvis" and "coco", or a dataset of another number of categories.
    """
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("thing_classes") is not None:
        check_num_classes(cfg, "DATASETS.TEST", dataset_name, len(metadata.thing_classes))
    frequencies = training_frequencies(cfg)
    tail = tail_of_loss(cfg, frequencies)
    analysis = TailAnalysis(dataset_name, output_dir, frequencies, tail, cfg.TEST.BOUNDARY_AP)
    arguments = {
        "output_dir": output_dir,
        "max_dets_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        "analysis": analysis,
        "fixed_ap": cfg.TEST.FIXED_AP_DETECTIONS_PER_IMAGE != 0,
    }
    if check_evaluator_type(dataset_name) == "lvis":
        evaluator = LVISEvaluator(dataset_name, backend=cfg.TEST.LVIS_BACKEND, **arguments)
    else:
        evaluator = AnalysedCOCOEvaluator(dataset_name, use_fast_impl=False, **arguments)
    if frequencies is None:
        return evaluator
    picture = PredictionPicture(dataset_name, os.path.join(output_dir, PICTURE), frequencies)
    return DatasetEvaluators([evaluator, picture])


def training_frequencies(cfg) -> ClassFrequencies | None:
    """Counts of the training set, or None, and a warning, where there are none: evaluation does without."""
    try:
        return ClassFrequencies.from_config(cfg)
    except ValueError as error:
        logger.warning("no picture of the predictions, and no counts in the analysis: %s", error)
        return None


def loss_name(cfg) -> str:
    """The classification loss of a config: its head's own, the one it names, or Detectron2's."""
    head = ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)
    return getattr(head, "loss_name", None) or cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME or "SoftmaxCrossEntropy"


def tail_of_loss(cfg, frequencies: ClassFrequencies | None) -> TailRule | None:
    """The tail rule of the config's classification loss; None where it has none, or cannot be applied to the counts."""
    rule = tail_rule(cfg, CLS_LOSS_REGISTRY.get(loss_name(cfg)))
    if rule is None or frequencies is None:
        return None
    try:
        rule.mask(frequencies)
    except FrequenciesNotFound as error:
        logger.warning("no tail in the analysis: %s", error)
        return None
    return rule


@contextmanager
def detections_for_fixed_ap(cfg, model):
    """Within this context the model keeps ``TEST.FIXED_AP_DETECTIONS_PER_IMAGE`` detections, if that is not 0."""
    limit = cfg.TEST.FIXED_AP_DETECTIONS_PER_IMAGE
    predictors = [m for m in model.modules() if isinstance(m, FastRCNNOutputLayers)] if limit else []
    before = [predictor.test_topk_per_image for predictor in predictors]
    for predictor in predictors:
        predictor.test_topk_per_image = limit
    try:
        yield
    finally:
        for predictor, own in zip(predictors, before):
            predictor.test_topk_per_image = own
