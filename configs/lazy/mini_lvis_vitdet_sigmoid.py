"""Faster R-CNN on MiniLVIS with a tiny ViTDet backbone and plain sigmoid cross-entropy: ViTDet's recipe at 128 px."""

from functools import partial

import torch.nn as nn
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.modeling import SimpleFeaturePyramid, ViT
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate

from eql_d2.losses import SigmoidCrossEntropy
from eql_d2.modeling import long_tail

from .mini_lvis_eql import dataloader, lr_multiplier, model, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

depth = 4
model.backbone = L(SimpleFeaturePyramid)(
    net=L(ViT)(
        img_size=128,
        pretrain_img_size=128,
        pretrain_use_cls_token=False,
        patch_size=8,
        embed_dim=96,
        depth=depth,
        num_heads=4,
        drop_path_rate=0.1,
        window_size=8,
        window_block_indexes=[0, 2],  # the others attend to the whole image
        use_rel_pos=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        out_feature="last_feat",
    ),
    in_feature="${.net.out_feature}",
    out_channels=48,
    scale_factors=(2.0, 1.0),  # p2 and p3
    norm="LN",
    square_pad=128,
)
long_tail(model, loss=L(SigmoidCrossEntropy)(prior_prob=0.01))

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.lr = 1e-3
optimizer.weight_decay = 0.05
optimizer.params.lr_factor_func = partial(get_vit_lr_decay_rate, lr_decay_rate=0.8, num_layers=depth)
optimizer.params.overrides = {"pos_embed": {"weight_decay": 0.0}}

train.init_checkpoint = ""
train.output_dir = "./output/mini_lvis_vitdet_sigmoid"
