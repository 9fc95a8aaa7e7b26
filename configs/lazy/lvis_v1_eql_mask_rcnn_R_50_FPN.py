"""EQL Mask R-CNN on LVIS v1: configs/LVISv1/eql_mask_rcnn_R_50_FPN_1x.yaml as a LazyConfig."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver.build import get_default_optimizer_params

from eql_d2 import ClassFrequencies, LongTailFastRCNNOutputLayers, TailRule
from eql_d2.data.train_loader import TrainLoader
from eql_d2.engine.optimizer import clipped_sgd
from eql_d2.evaluation.lvis_evaluation import LongTailLVISEvaluator
from eql_d2.losses import EqualizationLoss

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.backbone.bottom_up.freeze_at = 2
model.roi_heads.num_classes = 1203
model.roi_heads.box_predictor.update(
    _target_=LongTailFastRCNNOutputLayers,
    test_score_thresh=0.0001,
    test_topk_per_image=300,
    cls_loss=L(EqualizationLoss)(
        num_classes="${...num_classes}",
        frequencies=L(ClassFrequencies.from_dataset)(name="lvis_v1_train"),
        tail=L(TailRule)(max_image_count=100),
    ),
)

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train._target_ = TrainLoader
dataloader.train.dataset.names = "lvis_v1_train"
dataloader.test.dataset.names = "lvis_v1_val"
dataloader.evaluator = L(LongTailLVISEvaluator)(dataset_name="${..test.dataset.names}", max_dets_per_image=300)

optimizer = L(clipped_sgd)(
    params=L(get_default_optimizer_params)(weight_decay_norm=0.0),
    lr=0.02,
    momentum=0.9,
    weight_decay=1e-4,
    clip_norm=35.0,  # why: configs/Base-LVIS.yaml
)

lr_multiplier = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_1x

train = model_zoo.get_config("common/train.py").train
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.output_dir = "./output/lvis_v1_eql_lazy"
train.max_iter = 90000
train.eval_period = 0  # after training only
