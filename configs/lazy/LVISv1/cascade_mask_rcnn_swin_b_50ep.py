"""Swin-B Cascade Mask R-CNN on LVIS v1 (arXiv:2103.14030), pre-trained on ImageNet-21k."""

from detectron2.config import LazyCall as L
from detectron2.modeling import SwinTransformer

from .cascade_mask_rcnn_mvitv2_b_100ep import dataloader, epochs, model, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

model.backbone.bottom_up = L(SwinTransformer)(
    depths=[2, 2, 18, 2], drop_path_rate=0.3, embed_dim=128, num_heads=[4, 8, 16, 32]
)
model.backbone.in_features = ("p0", "p1", "p2", "p3")

optimizer.lr = 1e-4
optimizer.weight_decay = 0.05
optimizer.params.overrides = {"relative_position_bias_table": {"weight_decay": 0.0}}

lr_multiplier = epochs(train, 50)  # ViTDet's authors found it better than 100
train.init_checkpoint = "detectron2://ImageNetPretrained/swin/swin_base_patch4_window7_224_22k.pth"
train.output_dir = "./output/lvis_v1_cascade_swin_b"
