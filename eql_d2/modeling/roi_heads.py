"""Detectron2's three ROI heads with our box predictor, and the named heads that fix its loss.

The generic heads take any loss by ``MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME``; a new loss never needs a head.
"""

import torch
from detectron2.modeling.roi_heads import (
    ROI_HEADS_REGISTRY,
    CascadeROIHeads,
    Res5ROIHeads,
    StandardROIHeads,
)

from eql_d2.errors import InputError
from eql_d2.modeling.fast_rcnn import LongTailFastRCNNOutputLayers
from eql_d2.modeling.inference import fast_rcnn_inference
from eql_d2.modeling.masks import with_unpasted_masks


class LongTailMixin:
    """Builds the stock head's arguments, then puts our predictor in the place of each stock predictor."""

    loss_name: str | None = None  # the loss a named head stands for

    @classmethod
    def from_config(cls, cfg, input_shape):
        cfg = cls._with_own_loss(cfg)
        arguments = super().from_config(cfg, input_shape)  # type: ignore[misc]  # that of the head after the mixin
        if "box_predictors" in arguments:  # one for each stage of a cascade, each with its own loss and state
            arguments["box_predictors"] = [
                LongTailFastRCNNOutputLayers.like(stock, cfg) for stock in arguments["box_predictors"]
            ]
        else:
            stock = arguments["box_predictor"]
            arguments["box_predictor"] = LongTailFastRCNNOutputLayers.like(stock, cfg)
        return arguments

    def forward(self, *args, **kwargs):
        """The stock head's, whose masks are pasted into their images only where somebody looks at them."""
        instances, losses = super().forward(*args, **kwargs)  # type: ignore[misc]
        return (instances if self.training else with_unpasted_masks(instances)), losses  # type: ignore[attr-defined]

    @classmethod
    def _with_own_loss(cls, cfg):
        chosen = cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME
        if cls.loss_name is None or chosen == cls.loss_name:
            return cfg
        if chosen:
            raise InputError(
                f"MODEL.ROI_HEADS.NAME {cls.__name__} stands for the loss {cls.loss_name}, but "
                f"MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME is {chosen}: drop the latter, or choose a LongTail...ROIHeads head"
            )
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME = cls.loss_name
        return cfg


@ROI_HEADS_REGISTRY.register()
class LongTailROIHeads(LongTailMixin, StandardROIHeads):
    """StandardROIHeads (FPN, C5) with any classification loss."""


@ROI_HEADS_REGISTRY.register()
class LongTailCascadeROIHeads(LongTailMixin, CascadeROIHeads):
    """CascadeROIHeads with any classification loss, one instance a stage."""

    def _forward_box(self, features, proposals, targets=None):
        """Detectron2's, which calls its slow post-processing in the middle: its steps at inference, with ours."""
        if self.training or torch.jit.is_tracing():
            return super()._forward_box(features, proposals, targets)
        features = [features[f] for f in self.box_in_features]
        image_sizes = [p.image_size for p in proposals]
        boxes: list = []
        scores_per_stage = []
        for k, predictor in enumerate(self.box_predictor):
            if k > 0:  # each stage starts from the boxes of the one before
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
            predictions = self._run_stage(features, proposals, k)
            boxes = predictor.predict_boxes(predictions, proposals)
            scores_per_stage.append(predictor.predict_probs(predictions, proposals))
        scores = [sum(stages) * (1.0 / len(stages)) for stages in zip(*scores_per_stage)]
        instances, _ = fast_rcnn_inference(
            boxes,
            scores,
            image_sizes,
            predictor.test_score_thresh,
            predictor.test_nms_thresh,
            predictor.test_topk_per_image,
        )
        return instances


@ROI_HEADS_REGISTRY.register()
class LongTailRes5ROIHeads(LongTailMixin, Res5ROIHeads):
    """Res5ROIHeads (C4) with any classification loss."""


@ROI_HEADS_REGISTRY.register()
class EQLROIHeads(LongTailROIHeads):
    loss_name = "EqualizationLoss"


@ROI_HEADS_REGISTRY.register()
class CascadeEQLROIHeads(LongTailCascadeROIHeads):
    loss_name = "EqualizationLoss"


@ROI_HEADS_REGISTRY.register()
class Res5EQLROIHeads(LongTailRes5ROIHeads):
    loss_name = "EqualizationLoss"


@ROI_HEADS_REGISTRY.register()
class SoftmaxEQLROIHeads(LongTailROIHeads):
    loss_name = "SoftmaxEqualizationLoss"


@ROI_HEADS_REGISTRY.register()
class CascadeSoftmaxEQLROIHeads(LongTailCascadeROIHeads):
    loss_name = "SoftmaxEqualizationLoss"


@ROI_HEADS_REGISTRY.register()
class Res5SoftmaxEQLROIHeads(LongTailRes5ROIHeads):
    loss_name = "SoftmaxEqualizationLoss"


@ROI_HEADS_REGISTRY.register()
class DropLossROIHeads(LongTailROIHeads):
    """By the name that DropLoss's own project gives it in its YAML files."""

    loss_name = "DropLoss"


@ROI_HEADS_REGISTRY.register()
class FocalROIHeads(LongTailROIHeads):
    loss_name = "SigmoidFocalLoss"


@ROI_HEADS_REGISTRY.register()
class CascadeFocalROIHeads(LongTailCascadeROIHeads):
    loss_name = "SigmoidFocalLoss"


@ROI_HEADS_REGISTRY.register()
class Res5FocalROIHeads(LongTailRes5ROIHeads):
    loss_name = "SigmoidFocalLoss"
