"""The parts of a model that a classification loss of this package trains."""

from torch import nn

from eql_d2.modeling.dense import LongTailDenseMixin
from eql_d2.modeling.fast_rcnn import LongTailFastRCNNOutputLayers

# Both have num_classes, cls_loss, calibration, the classifier cls_score, and limits of the detections of an image,
# test_score_thresh and test_topk_per_image.
Predictor = LongTailFastRCNNOutputLayers | LongTailDenseMixin


def predictors_of(model: nn.Module) -> list[Predictor]:
    """The box predictors of ROI heads, one for each stage of a cascade, or a dense detector itself; else []."""
    return [m for m in model.modules() if isinstance(m, LongTailFastRCNNOutputLayers | LongTailDenseMixin)]
