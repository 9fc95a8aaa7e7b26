"""R-50 Mask R-CNN on LVIS v1 by the schedule of Detectron2's new_baselines: from random weights, LSJ, SyncBN."""

from detectron2 import model_zoo

from eql_d2.modeling import long_tail

from .data import dataloader, iterations_per_epoch
from .heads import for_lvis
from .losses import federated

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

baseline = model_zoo.get_config("new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py")
model, optimizer, lr_multiplier, train = baseline.model, baseline.optimizer, baseline.lr_multiplier, baseline.train
dataloader.train.mapper.image_format = model.input_format  # BGR

model.roi_heads.num_classes = 1203
for_lvis(model.roi_heads.box_predictor)
long_tail(model, loss=federated)  # or eql, eqlv2, seesaw of losses.py

train.max_iter = round(100 * iterations_per_epoch)
lr_multiplier.scheduler.update(
    milestones=[round(train.max_iter * 8 / 9), round(train.max_iter * 26 / 27)], num_updates=train.max_iter
)
lr_multiplier.warmup_length = 500 / train.max_iter
train.amp.precision = "fp16"
train.output_dir = "./output/lvis_v1_R_50_LSJ"
