"""ViTDet-B Mask R-CNN on LVIS v1 (arXiv:2203.16527), sigmoid cross-entropy with federated loss; see docs/modern.md."""

from functools import partial

from detectron2 import model_zoo
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate

from eql_d2.modeling import long_tail

from .data import dataloader
from .heads import for_lvis
from .losses import federated
from .schedule import AdamW as optimizer
from .schedule import epochs, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
model.roi_heads.num_classes = 1203
for_lvis(model.roi_heads.box_predictor)
long_tail(model, loss=federated)  # or eql, eqlv2, seesaw of losses.py

optimizer.lr = 2e-4
optimizer.params.lr_factor_func = partial(get_vit_lr_decay_rate, num_layers=12, lr_decay_rate=0.7)
optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}

lr_multiplier = epochs(train, 100)
train.init_checkpoint = "detectron2://ImageNetPretrained/MAE/mae_pretrain_vit_base.pth?matching_heuristics=True"
train.output_dir = "./output/lvis_v1_vitdet_b"
