"""The box predictor, ROI heads and dense detectors; importing this package registers them."""

from eql_d2.modeling.criterion import LongTailCriterionMixin, class_embed
from eql_d2.modeling.fast_rcnn import LongTailFastRCNNOutputLayers
from eql_d2.modeling.fcos import LongTailFCOS
from eql_d2.modeling.long_tail import long_tail
from eql_d2.modeling.retinanet import LongTailRetinaNet
from eql_d2.modeling.roi_heads import (
    LongTailCascadeROIHeads,
    LongTailRes5ROIHeads,
    LongTailROIHeads,
)

__all__ = [
    "LongTailCascadeROIHeads",
    "LongTailCriterionMixin",
    "LongTailFCOS",
    "LongTailFastRCNNOutputLayers",
    "LongTailROIHeads",
    "LongTailRes5ROIHeads",
    "LongTailRetinaNet",
    "class_embed",
    "long_tail",
]
