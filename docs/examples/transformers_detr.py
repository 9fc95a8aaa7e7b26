"""DETR of transformers with a loss of eql_d2: `long_tailed_detr(model, loss)` before training.

pip install transformers
"""

from transformers import DetrForObjectDetection
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher
from transformers.loss.loss_for_object_detection import ImageLoss

from eql_d2 import ClassificationLoss
from eql_d2.modeling import LongTailCriterionMixin, class_embed


class LongTailImageLoss(LongTailCriterionMixin, ImageLoss):
    """Boxes as in transformers, categories by ``cls_loss``."""


def long_tailed_detr(model: DetrForObjectDetection, cls_loss: ClassificationLoss) -> DetrForObjectDetection:
    """Give a DETR the classifier, the matcher and the criterion of a sigmoid loss, in place.

    Scores are sigmoids then: of `model(pixel_values).logits` take `cls_loss.probs`, not a softmax.
    """
    config = model.config
    model.class_labels_classifier = class_embed(config.d_model, cls_loss)
    # Deformable DETR's matcher, whose classification cost is by sigmoids.
    matcher = DeformableDetrHungarianMatcher(config.class_cost, config.bbox_cost, config.giou_cost)
    criterion = LongTailImageLoss(matcher, cls_loss.num_classes, config.eos_coefficient, ["labels", "boxes"])
    criterion.cls_loss = cls_loss
    model.criterion = criterion  # a part of the model, so that checkpoints have what the loss accumulates
    weights = {
        "loss_ce": 1.0,
        "loss_bbox": config.bbox_loss_coefficient,
        "loss_giou": config.giou_loss_coefficient,
    }

    def loss_function(logits, labels, _device, pred_boxes, *_unused, **_unused_too):
        losses = criterion({"logits": logits, "pred_boxes": pred_boxes}, labels)
        return sum(losses[name] * weight for name, weight in weights.items()), losses, None

    model.loss_function = loss_function
    return model
