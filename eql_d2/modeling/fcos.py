"""FCOS with any sigmoid loss. Shapes as in :mod:`eql_d2.modeling.dense`; a place is its one anchor, A = 1."""

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.box_regression import _dense_box_regression_loss
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from torch.nn import functional as F

from eql_d2.losses import ClassificationLoss
from eql_d2.modeling.calibration import Calibration
from eql_d2.modeling.dense import LongTailDenseMixin, loss_arguments


@META_ARCH_REGISTRY.register()
class LongTailFCOS(LongTailDenseMixin, FCOS):
    """Detectron2's FCOS with a classification loss of this package, see :class:`LongTailDenseMixin`.

    Detectron2 has FCOS for LazyConfigs only; the keys of ``MODEL.FCOS`` are of this package. In YAML
    ``MODEL.META_ARCHITECTURE LongTailFCOS`` with ``MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME``, by default SigmoidFocalLoss,
    which is stock FCOS.
    """

    initial_normalizer = 300.0

    @configurable
    def __init__(self, *, cls_loss: ClassificationLoss, calibration: Calibration | None = None, **kwargs):
        """
        Args:
            cls_loss: the classification loss, for ``num_classes`` classes.
            calibration: a correction of the loss's scores at inference, or None.
            kwargs: the arguments of ``FCOS``, whose ``focal_loss_alpha`` and ``focal_loss_gamma`` are those of a loss
                and not read. ``head`` is for ``num_classes`` classes; its classifier is fitted to the loss.
        """
        super().__init__(**kwargs)
        self.take_loss(cls_loss, calibration)

    @classmethod
    def from_config(cls, cfg):
        backbone, fcos = build_backbone(cfg), cfg.MODEL.FCOS
        shapes = [backbone.output_shape()[name] for name in fcos.IN_FEATURES]
        head = FCOSHead(
            input_shape=shapes,
            conv_dims=[shapes[0].channels] * fcos.NUM_CONVS,
            num_classes=fcos.NUM_CLASSES,
            norm=fcos.NORM,
        )
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": fcos.IN_FEATURES,
            "num_classes": fcos.NUM_CLASSES,
            "center_sampling_radius": fcos.CENTER_SAMPLING_RADIUS,
            "test_score_thresh": fcos.SCORE_THRESH_TEST,
            "test_topk_candidates": fcos.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": fcos.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            **loss_arguments(cfg, "FCOS"),
        }

    def forward_training(self, images, features, predictions, gt_instances):
        pred_logits, pred_anchor_deltas, pred_centerness = self.anchors_last(predictions)
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes, pred_centerness)

    def losses(self, anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes, pred_centerness):
        """As ``FCOS.losses``, with logits of any shape that :meth:`classification_loss` takes."""
        gt_labels, foreground, normalizer = self.normalised_labels(gt_labels)
        loss_box_reg = _dense_box_regression_loss(
            anchors, self.box2box_transform, pred_anchor_deltas, gt_boxes, foreground, box_reg_loss_type="giou"
        )
        centerness = torch.cat(pred_centerness, dim=1).squeeze(dim=2)[foreground]
        targets = self.compute_ctrness_targets(anchors, gt_boxes)[foreground]
        loss_centerness = F.binary_cross_entropy_with_logits(centerness, targets, reduction="sum")
        return {
            "loss_fcos_cls": self.classification_loss(pred_logits, gt_labels, normalizer),
            "loss_fcos_loc": loss_box_reg / normalizer,
            "loss_fcos_ctr": loss_centerness / normalizer,
        }

    def forward_inference(self, images, features, predictions):
        widths = [self.cls_loss.num_logits, 4, 1]
        logits, deltas, centerness = self._transpose_dense_predictions(predictions, widths)
        anchors = self.anchor_generator(features)
        return [
            self.detect(anchors, [x[i] for x in logits], [x[i] for x in deltas], image_size, [x[i] for x in centerness])
            for i, image_size in enumerate(images.image_sizes)
        ]
