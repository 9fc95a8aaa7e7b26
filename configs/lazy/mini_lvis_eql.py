"""EQL Faster R-CNN on MiniLVIS: configs/MiniLVIS/eql_faster_rcnn.yaml as a LazyConfig."""

import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import FastRCNNConvFCHead, StandardROIHeads
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import CosineParamScheduler

from eql_d2 import ClassFrequencies, LongTailFastRCNNOutputLayers, TailRule
from eql_d2.data.train_loader import TrainLoader
from eql_d2.engine.optimizer import classifier_lr_factor, clipped_sgd
from eql_d2.evaluation.lvis_evaluation import LongTailLVISEvaluator
from eql_d2.losses import EqualizationLoss
from eql_d2.mini_lvis.backbone import freeze_unread_levels

widths = [24, 24, 48, 96]  # of the stem, res2, res3, res4

model = L(GeneralizedRCNN)(
    backbone=L(freeze_unread_levels)(
        fpn=L(FPN)(
            bottom_up=L(ResNet)(
                stem=L(BasicStem)(in_channels=3, out_channels=widths[0], norm="BN"),
                stages=[
                    L(ResNet.make_stage)(
                        block_class=BasicBlock,
                        num_blocks=1,
                        stride_per_block=[1 if i == 0 else 2],
                        in_channels=widths[i],
                        out_channels=widths[i + 1],
                        norm="BN",
                    )
                    for i in range(3)
                ],
                out_features=["res2", "res3", "res4"],
            ),
            in_features="${.bottom_up.out_features}",
            out_channels=48,
            norm="BN",
        ),
        read=["p2", "p3"],
    ),
    proposal_generator=L(RPN)(
        in_features=["p3"],
        head=L(StandardRPNHead)(in_channels=48, num_anchors=3),
        anchor_generator=L(DefaultAnchorGenerator)(sizes=[[18, 30, 48]], aspect_ratios=[1.0], strides=[8], offset=0.0),
        anchor_matcher=L(Matcher)(thresholds=[0.3, 0.6], labels=[0, -1, 1], allow_low_quality_matches=True),
        box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_topk=(500, 300),
        post_nms_topk=(200, 100),
        nms_thresh=0.7,
    ),
    roi_heads=L(StandardROIHeads)(
        num_classes=90,
        batch_size_per_image=32,
        positive_fraction=0.5,
        proposal_matcher=L(Matcher)(thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False),
        box_in_features=["p2"],
        box_pooler=L(ROIPooler)(output_size=7, scales=(1.0 / 4,), sampling_ratio=1, pooler_type="ROIAlignV2"),
        box_head=L(FastRCNNConvFCHead)(
            input_shape=ShapeSpec(channels=48, height=7, width=7), conv_dims=[], fc_dims=[256]
        ),
        box_predictor=L(LongTailFastRCNNOutputLayers)(
            input_shape=ShapeSpec(channels=256),
            box2box_transform=L(Box2BoxTransform)(weights=(10, 10, 5, 5)),
            num_classes="${..num_classes}",
            cls_agnostic_bbox_reg=True,
            test_score_thresh=0.0001,
            test_topk_per_image=300,
            cls_loss=L(EqualizationLoss)(
                num_classes="${...num_classes}",
                frequencies=L(ClassFrequencies.from_dataset)(name="mini_lvis_train", cache_dir="${train.output_dir}"),
                tail=L(TailRule)(groups="r"),
                prior_prob=0.01,
            ),
        ),
    ),
    pixel_mean=[127.5, 127.5, 127.5],
    pixel_std=[60.0, 60.0, 60.0],
    input_format="BGR",
)

dataloader = dict(
    train=L(TrainLoader)(
        dataset=L(get_detection_dataset_dicts)(names="mini_lvis_train"),
        mapper=L(DatasetMapper)(
            is_train=True,
            augmentations=[L(T.ResizeShortestEdge)(short_edge_length=128, max_size=1333)],
            image_format="BGR",
        ),
        total_batch_size=4,
        num_workers=0,
    ),
    test=L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="mini_lvis_val", filter_empty=False),
        mapper=L(DatasetMapper)(
            is_train=False,
            augmentations=[L(T.ResizeShortestEdge)(short_edge_length=128, max_size=1333)],
            image_format="BGR",
        ),
        num_workers=0,
    ),
    evaluator=L(LongTailLVISEvaluator)(dataset_name="mini_lvis_val", max_dets_per_image=300),
)

optimizer = L(clipped_sgd)(
    params=L(get_default_optimizer_params)(
        base_lr="${..lr}",
        weight_decay_norm=0.0,
        # A rare logit has few positives to rise by.
        lr_factor_func=L(classifier_lr_factor)(factor=20.0),
    ),
    lr=0.02,
    momentum=0.9,
    weight_decay=1e-4,
    clip_norm=5.0,
)

lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    warmup_length=50 / 900,
    warmup_factor=0.001,
)

train = model_zoo.get_config("common/train.py").train
train.init_checkpoint = "mini_lvis://base_weights.pth"
train.output_dir = "./output/mini_lvis_eql_lazy"
train.max_iter = 900
train.eval_period = 0  # after training only
train.checkpointer.period = 300
train.seed = 0
