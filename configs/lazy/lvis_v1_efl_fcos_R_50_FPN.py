"""FCOS with EFL on LVIS v1: Detectron2's model and schedule; EFL needs no counts."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from eql_d2.losses import EqualizedFocalLoss
from eql_d2.modeling import long_tail

from .lvis_v1_eql_mask_rcnn_R_50_FPN import dataloader, lr_multiplier, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

model = model_zoo.get_config("common/models/fcos.py").model
model.backbone.bottom_up.freeze_at = 2
model.num_classes = 1203
model.update(test_score_thresh=0.0001, test_topk_candidates=3000, max_detections_per_image=300)
long_tail(model, loss=L(EqualizedFocalLoss)())

dataloader.train.mapper.use_instance_mask = False
optimizer.lr = 0.01
train.output_dir = "./output/lvis_v1_efl_fcos"
