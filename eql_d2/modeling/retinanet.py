"""RetinaNet with any sigmoid loss. Shapes as in :mod:`eql_d2.modeling.dense`."""

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.modeling.box_regression import _dense_box_regression_loss

from eql_d2.losses import ClassificationLoss
from eql_d2.modeling.calibration import Calibration
from eql_d2.modeling.dense import LongTailDenseMixin, loss_arguments


@META_ARCH_REGISTRY.register()
class LongTailRetinaNet(LongTailDenseMixin, RetinaNet):
    """Detectron2's RetinaNet with a classification loss of this package, see :class:`LongTailDenseMixin`.

    In YAML ``MODEL.META_ARCHITECTURE LongTailRetinaNet`` with ``MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME``, by default
    SigmoidFocalLoss, which is stock RetinaNet; all else by the keys of ``MODEL.RETINANET``.
    """

    initial_normalizer = 100.0

    @configurable
    def __init__(self, *, cls_loss: ClassificationLoss, calibration: Calibration | None = None, **kwargs):
        """
        Args:
            cls_loss: the classification loss, for ``num_classes`` classes.
            calibration: a correction of the loss's scores at inference, or None.
            kwargs: the arguments of ``RetinaNet``, whose ``focal_loss_alpha`` and ``focal_loss_gamma`` are those of a
                loss and not read. ``head`` is for ``num_classes`` classes; its classifier is fitted to the loss.
        """
        super().__init__(**kwargs)
        self.take_loss(cls_loss, calibration)

    @classmethod
    def from_config(cls, cfg):
        return {**super().from_config(cfg), **loss_arguments(cfg, "RETINANET")}

    def forward_training(self, images, features, predictions, gt_instances):
        pred_logits, pred_anchor_deltas = self.anchors_last(predictions)
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        return self.losses(anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes)

    def losses(self, anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes):
        """As ``RetinaNet.losses``, with logits of any shape that :meth:`classification_loss` takes."""
        gt_labels, foreground, normalizer = self.normalised_labels(gt_labels)
        loss_box_reg = _dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            pred_anchor_deltas,
            gt_boxes,
            foreground,
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        return {
            "loss_cls": self.classification_loss(pred_logits, gt_labels, normalizer),
            "loss_box_reg": loss_box_reg / normalizer,
        }

    def forward_inference(self, images, features, predictions):
        logits, deltas = self._transpose_dense_predictions(predictions, [self.cls_loss.num_logits, 4])
        anchors = self.anchor_generator(features)
        return [
            self.detect(anchors, [x[i] for x in logits], [x[i] for x in deltas], image_size)
            for i, image_size in enumerate(images.image_sizes)
        ]
