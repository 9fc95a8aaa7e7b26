"""MViTv2-B Cascade Mask R-CNN on LVIS v1 (arXiv:2112.01526), pre-trained on ImageNet-21k."""

from functools import partial

import torch.nn as nn
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.modeling import MViT

from eql_d2.modeling import long_tail

from .data import dataloader
from .heads import cascade, for_lvis
from .losses import federated
from .schedule import AdamW as optimizer
from .schedule import epochs, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

constants = model_zoo.get_config("common/data/constants.py").constants
model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.update(pixel_mean=constants.imagenet_rgb256_mean, pixel_std=constants.imagenet_rgb256_std, input_format="RGB")
model.backbone.bottom_up = L(MViT)(
    embed_dim=96,
    depth=24,
    num_heads=1,
    last_block_indexes=(1, 4, 20, 23),
    residual_pooling=True,
    drop_path_rate=0.4,
    norm_layer=partial(nn.LayerNorm, eps=1e-6),
    out_features=("scale2", "scale3", "scale4", "scale5"),
)
model.backbone.update(in_features="${.bottom_up.out_features}", square_pad=1024, norm="LN")
model.proposal_generator.head.conv_dims = [-1, -1]
model.roi_heads.mask_head.conv_norm = "LN"
model.roi_heads.num_classes = 1203
cascade(model)
for predictor in model.roi_heads.box_predictors:
    for_lvis(predictor)
long_tail(model, loss=federated)  # or eql, eqlv2, seesaw of losses.py

optimizer.lr = 1e-4
optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}

lr_multiplier = epochs(train, 100)
train.init_checkpoint = "detectron2://ImageNetPretrained/mvitv2/MViTv2_B_in21k.pyth"
train.output_dir = "./output/lvis_v1_cascade_mvitv2_b"
