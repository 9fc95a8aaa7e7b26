"""The box predictor and ROI heads; importing this package registers them."""

from eql_d2.modeling.fast_rcnn import LongTailFastRCNNOutputLayers
from eql_d2.modeling.long_tail import long_tail
from eql_d2.modeling.roi_heads import (
    LongTailCascadeROIHeads,
    LongTailRes5ROIHeads,
    LongTailROIHeads,
)

__all__ = [
    "LongTailCascadeROIHeads",
    "LongTailFastRCNNOutputLayers",
    "LongTailROIHeads",
    "LongTailRes5ROIHeads",
    "long_tail",
]
