"""LVIS v1 with large-scale jitter and repeat factor sampling: what ViTDet's, Swin's and MViTv2's LVIS recipes read."""

import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data.samplers import RepeatFactorTrainingSampler

from eql_d2.data.train_loader import TrainLoader
from eql_d2.evaluation.lvis_evaluation import LongTailLVISEvaluator

image_size = 1024
images_in_train = 100_000  # 99,388 of lvis_v1_train have objects
batch_size = 64
iterations_per_epoch = images_in_train / batch_size

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train._target_ = TrainLoader
dataloader.train.dataset.names = "lvis_v1_train"
dataloader.train.total_batch_size = batch_size
dataloader.train.sampler = L(RepeatFactorTrainingSampler)(
    repeat_factors=L(RepeatFactorTrainingSampler.repeat_factors_from_category_frequency)(
        dataset_dicts="${dataloader.train.dataset}", repeat_thresh=0.001
    )
)
dataloader.train.mapper.update(
    augmentations=[
        L(T.RandomFlip)(horizontal=True),
        L(T.ResizeScale)(min_scale=0.1, max_scale=2.0, target_height=image_size, target_width=image_size),
        L(T.FixedSizeCrop)(crop_size=(image_size, image_size), pad=False),
    ],
    image_format="RGB",
    recompute_boxes=True,  # a cropped object's box is that of the mask that is left
)
dataloader.test.dataset.names = "lvis_v1_val"
dataloader.test.mapper.augmentations = [L(T.ResizeShortestEdge)(short_edge_length=image_size, max_size=image_size)]
dataloader.evaluator = L(LongTailLVISEvaluator)(dataset_name="${..test.dataset.names}", max_dets_per_image=300)
