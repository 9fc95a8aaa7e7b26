"""ViTDet-L Cascade Mask R-CNN on LVIS v1."""

from eql_d2.modeling import long_tail

from .heads import cascade, for_lvis
from .losses import federated
from .mask_rcnn_vitdet_l_100ep import dataloader, lr_multiplier, model, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

cascade(model)
for predictor in model.roi_heads.box_predictors:
    for_lvis(predictor)
long_tail(model, loss=federated)  # or eql, eqlv2, seesaw of losses.py

train.output_dir = "./output/lvis_v1_cascade_vitdet_l"
