"""Losses of this package in set criteria: DETR and its kin, whose queries a matcher gives objects.

Shape shorthand: N images, Q queries, K categories, C logits of a query, as many as the loss says.
"""

import torch
from torch import nn

from eql_d2.errors import InputError
from eql_d2.losses import ClassificationLoss
from eql_d2.losses.normalised import normalised_loss
from eql_d2.modeling.dense import dense_bias


class LongTailCriterionMixin:
    """Replaces ``loss_labels`` of a SetCriterion; all else, matching and box losses, stays.

    class LongTailCriterion(LongTailCriterionMixin, SetCriterion):
        label_loss_name = "loss_class"  # detrex; DETR and Deformable DETR have "loss_ce"

    criterion.cls_loss = EqualizationLoss(num_classes=1203, frequencies="train_counts.json")

    The loss is the sum over all queries, divided by ``num_boxes``; a query without an object is background. The
    model's classifier must be as wide as the loss says, and starts from its prior: :func:`class_embed`. A loss that
    counts (EFL, EQL v2, ``LateStart``) counts every call: with 6 decoder layers, 6 an iteration.
    """

    label_loss_name = "loss_ce"
    cls_loss: ClassificationLoss

    def loss_labels(self, outputs, targets, indices, num_boxes, **_unused) -> dict[str, torch.Tensor]:
        """
        Args:
            outputs: with ``pred_logits``, or ``logits`` (transformers), (N, Q, C).
            targets: N dicts with ``labels``, or ``class_labels``, int64 in [0, K).
            indices: N pairs of matched queries and objects.
            num_boxes: number of objects, of all processes on average, at least 1.

        Returns:
            The loss, under :attr:`label_loss_name`.

        Raises:
            InputError: no loss, or see :func:`eql_d2.losses.normalised_loss`.
        """
        if getattr(self, "cls_loss", None) is None:
            raise InputError(f"{type(self).__name__} has no loss: set its cls_loss to one of eql_d2.losses")
        logits = outputs["pred_logits"] if "pred_logits" in outputs else outputs["logits"]
        labels = query_labels(logits.shape[:2], targets, indices, self.cls_loss.num_classes).to(logits.device)
        return {self.label_loss_name: normalised_loss(self.cls_loss, logits, labels, num_boxes)}


def query_labels(shape, targets: list[dict], indices: list, num_classes: int) -> torch.Tensor:
    """(N, Q) int64 labels of queries: the category of the object that each is matched with, else K."""
    labels = torch.full(tuple(shape), num_classes, dtype=torch.int64)
    for row, target, (queries, objects) in zip(labels, targets, indices, strict=True):
        categories = target["labels"] if "labels" in target else target["class_labels"]
        row[torch.as_tensor(queries).cpu()] = categories.cpu()[torch.as_tensor(objects).cpu()]
    return labels


def class_embed(in_features: int, cls_loss: ClassificationLoss) -> nn.Linear:
    """A classifier of queries as wide as the loss says, whose bias starts from the loss's prior."""
    layer = nn.Linear(in_features, cls_loss.num_logits)
    with torch.no_grad():
        layer.bias.copy_(dense_bias(cls_loss))
    return layer
