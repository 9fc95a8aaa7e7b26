"""From a config to the evaluator of a dataset."""

import logging
import os
import sys
from contextlib import contextmanager

from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, DatasetEvaluators, LVISEvaluator
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from omegaconf import DictConfig, ListConfig
from torch import nn

from eql_d2.data import ClassFrequencies
from eql_d2.data.frequencies import FrequenciesNotFound, TailRule
from eql_d2.drawing.picture import PredictionPicture
from eql_d2.engine.checks import check_evaluator_type
from eql_d2.engine.dataset_checks import check_num_classes
from eql_d2.engine.settings import RunSettings, settings_of
from eql_d2.evaluation.coco_evaluation import LongTailCOCOEvaluator
from eql_d2.evaluation.lvis_evaluation import LongTailLVISEvaluator
from eql_d2.evaluation.registry import EVALUATOR_REGISTRY
from eql_d2.evaluation.tail_analysis import TailAnalysis
from eql_d2.modeling.long_tail import described, target_of

logger = logging.getLogger(__name__)

PICTURE = "ground_truth_and_predictions.png"
OURS = (LongTailLVISEvaluator, LongTailCOCOEvaluator)
STOCK = (LVISEvaluator, COCOEvaluator)


def build_evaluator(cfg, dataset_name: str, output_dir: str) -> DatasetEvaluator:
    """The evaluator that the dataset's ``evaluator_type`` names, and the picture of its rarest objects.

    A LazyConfig's ``dataloader.evaluator`` is taken as it is where it is of a user's own class; Detectron2's for LVIS
    and COCO become ours, which have the same metrics, with a line in the log. With fixed AP the model must keep as many
    detections as :func:`detections_for_fixed_ap` makes it.
    """
    if isinstance(cfg, DictConfig) and not replaceable(cfg.dataloader.get("evaluator")):
        node = cfg.dataloader.evaluator
        return DatasetEvaluators([instantiate(n) for n in node]) if isinstance(node, ListConfig) else instantiate(node)
    run, metadata = settings_of(cfg), MetadataCatalog.get(dataset_name)
    if metadata.get("thing_classes") is not None:
        check_num_classes(run, "test_sets", dataset_name, len(metadata.thing_classes))
    frequencies = training_frequencies(run)
    tail = tail_of_loss(run, frequencies)
    analysis = TailAnalysis(dataset_name, output_dir, frequencies, tail, run.boundary_ap)
    evaluator = EVALUATOR_REGISTRY.get(check_evaluator_type(dataset_name))(
        dataset_name,
        output_dir=output_dir,
        max_dets_per_image=run.detections_per_image,
        analysis=analysis,
        fixed_ap=run.fixed_ap_detections != 0,
        backend=run.lvis_backend,
    )
    if frequencies is None:
        return evaluator
    picture = PredictionPicture(dataset_name, os.path.join(output_dir, PICTURE), frequencies)
    return DatasetEvaluators([evaluator, picture])


def replaceable(node) -> bool:
    """Whether ours stands in for a LazyConfig's evaluator: for ours, for none, and for Detectron2's, with a line."""
    if node is None or target_of(node) in OURS:
        return True
    if target_of(node) not in STOCK:
        return False
    logger.info(
        "dataloader.evaluator: eql_d2's, with the same metrics, in the place of Detectron2's %s", described(node)
    )
    return True


def training_frequencies(run: RunSettings) -> ClassFrequencies | None:
    """Counts of the training set, or None, and a warning, where there are none: evaluation does without."""
    try:
        return run.frequencies()
    except ValueError as error:
        logger.warning("no picture of the predictions, and no counts in the analysis: %s", error)
        return None


def tail_of_loss(run: RunSettings, frequencies: ClassFrequencies | None) -> TailRule | None:
    """The tail rule of the classification loss; None where it has none, or cannot be applied to the counts."""
    rule = run.tail_rule()
    if rule is None or frequencies is None:
        return None
    try:
        rule.mask(frequencies)
    except FrequenciesNotFound as error:
        logger.warning("no tail in the analysis: %s", error)
        return None
    return rule


@contextmanager
def detections_for_fixed_ap(run: RunSettings, model):
    """Within this context the model keeps ``TEST.FIXED_AP_DETECTIONS_PER_IMAGE`` detections, if that is not 0."""
    limit = run.fixed_ap_detections
    limits = detection_limits(model) if limit else []
    before = [getattr(*of) for of in limits]
    for module, name in limits:
        # A dense detector of Detectron2's knows no -1.
        setattr(module, name, sys.maxsize if limit < 0 and isinstance(module, DenseDetector) else limit)
    try:
        yield
    finally:
        for (module, name), own in zip(limits, before):
            setattr(module, name, own)


def detection_limits(model) -> list[tuple[nn.Module, str]]:
    """The modules that limit the detections of an image, and their attributes that do."""
    attributes = {FastRCNNOutputLayers: "test_topk_per_image", DenseDetector: "max_detections_per_image"}
    return [(m, name) for m in model.modules() for of, name in attributes.items() if isinstance(m, of)]
