"""Torchvision's FasterRCNN, MaskRCNN, KeypointRCNN and RetinaNet with a classification loss of this package.

Torchvision numbers its labels from 1 in models with RoI heads, where 0 is background; our category j is its label
j + 1. Its RetinaNet has a column for every label that there may be, 0 included; there category j is label j.

Shape shorthand: as in :mod:`eql_d2.modeling.fast_rcnn`.
"""

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetClassificationHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import boxes as box_ops

from eql_d2.errors import InputError
from eql_d2.losses import ClassificationLoss
from eql_d2.losses.base import SigmoidLoss
from eql_d2.modeling.dense import require_dense
from eql_d2.modeling.inference import fast_rcnn_inference_single_image

MIN_SIZE = 1e-2  # of a box's sides in pixels, as in torchvision


class LongTailPredictor(FastRCNNPredictor):
    """Torchvision's box predictor with as many logits as the loss says."""

    logits: torch.Tensor | None = None  # of a training step, for LongTailRoIHeads

    def forward(self, x):
        logits, deltas = super().forward(x)
        if not self.training:
            return logits, deltas
        self.logits = logits
        # Torchvision makes its softmax loss of what it gets here, which is then thrown away.
        return logits.new_zeros(len(logits), deltas.shape[1] // 4), deltas


class LongTailRoIHeads(RoIHeads):
    """Torchvision's ROI heads with the loss and the scores of ``cls_loss``; boxes, masks and keypoints are its own."""

    cls_loss: ClassificationLoss
    labels: torch.Tensor | None = None  # (R,) of a training step, as torchvision numbers them

    def select_training_samples(self, proposals, targets):
        samples = super().select_training_samples(proposals, targets)
        self.labels = torch.cat(samples[2])
        return samples

    def forward(self, features, proposals, image_shapes, targets=None):
        result, losses = super().forward(features, proposals, image_shapes, targets)
        if self.training:
            logits, labels = self.box_predictor.logits, self.labels
            self.box_predictor.logits = self.labels = None
            losses["loss_classifier"] = self.cls_loss(logits, background_last(labels, self.cls_loss.num_classes))
        return result, losses

    def postprocess_detections(self, class_logits, box_regression, proposals, image_shapes):
        sizes = [len(p) for p in proposals]
        boxes = self.box_coder.decode(box_regression, proposals)[:, 1:]
        found = [
            self._detections_of(*image)
            for image in zip(boxes.split(sizes), self.cls_loss.probs(class_logits).split(sizes), image_shapes)
        ]
        return [list(field) for field in zip(*found)]

    def _detections_of(self, boxes, scores, image_shape):
        """Boxes, scores and labels of one image, from (Ri, K, 4) boxes and (Ri, K + 1) scores."""
        boxes = box_ops.clip_boxes_to_image(boxes, image_shape)
        small = ((boxes[..., 2:] - boxes[..., :2]) < MIN_SIZE).any(dim=2)
        scores = scores.masked_fill(nn.functional.pad(small, (0, 1)), -1)  # below any threshold
        detections, _ = fast_rcnn_inference_single_image(
            boxes.flatten(1), scores, image_shape, self.score_thresh, self.nms_thresh, self.detections_per_img
        )
        return detections.pred_boxes.tensor, detections.scores, detections.pred_classes + 1


def background_last(labels, num_classes: int) -> torch.Tensor:
    """Torchvision's labels, 0 for background, as ours, K for background."""
    return torch.where(labels == 0, num_classes, labels - 1)


class LongTailClassificationHead(RetinaNetClassificationHead):
    """The classification head of torchvision's RetinaNet with ``cls_loss``, normalised by foreground as there."""

    cls_loss: SigmoidLoss

    def compute_loss(self, targets, head_outputs, matched_idxs):
        logits = head_outputs["cls_logits"]
        labels = torch.full(logits.shape[:2], self.cls_loss.num_classes, device=logits.device)
        for row, target, matched in zip(labels, targets, matched_idxs):
            foreground = matched >= 0
            row[foreground] = target["labels"][matched[foreground]]
        foreground = labels < self.cls_loss.num_classes
        weights = 1 / (len(targets) * foreground.sum(dim=1, keepdim=True).clamp(min=1))
        counts = torch.stack(list(matched_idxs)) != self.BETWEEN_THRESHOLDS
        rows = self.cls_loss(logits[counts], labels[counts], reduction="none")
        return (rows * weights.expand_as(labels)[counts]).sum()


def long_tail_torchvision(model: nn.Module, loss: ClassificationLoss) -> nn.Module:
    """See :func:`eql_d2.modeling.long_tail`."""
    if not isinstance(loss, ClassificationLoss):
        raise InputError(
            f"long_tail takes a loss for a model of torchvision, loss=EqualizationLoss(num_classes=..., "
            f"frequencies=...); got a {type(loss).__name__}"
        )
    if isinstance(model, FasterRCNN):
        use_in_roi_heads(model.roi_heads, loss)
    elif isinstance(model, RetinaNet):
        use_in_retinanet(model.head.classification_head, loss)
    else:
        raise InputError(
            f"long_tail serves torchvision's FasterRCNN, MaskRCNN, KeypointRCNN and RetinaNet, and LazyConfig models "
            f"of Detectron2's; got {type(model).__name__}"
        )
    return model


def use_in_roi_heads(heads: RoIHeads, loss: ClassificationLoss) -> None:
    for part, stock, ours in (
        (heads, RoIHeads, LongTailRoIHeads),
        (heads.box_predictor, FastRCNNPredictor, LongTailPredictor),
    ):
        require_type(part, stock, ours)
    K = heads.box_predictor.bbox_pred.out_features // 4 - 1
    require_classes(loss, K, f"the model was built with num_classes={K + 1}, background included, so has {K}")
    heads.__class__, heads.box_predictor.__class__ = LongTailRoIHeads, LongTailPredictor
    heads.cls_loss = loss.to(heads.box_predictor.bbox_pred.weight.device)
    heads.box_predictor.cls_score = classifier(heads.box_predictor.cls_score, loss)


@torch.no_grad()
def classifier(stock: nn.Linear, loss: ClassificationLoss) -> nn.Linear:
    """As wide as the loss says, from the rows that torchvision's has for the categories, and for background last."""
    K, C = loss.num_classes, loss.num_logits
    ours = nn.Linear(stock.in_features, C).to(stock.weight)
    nn.init.normal_(ours.weight, std=0.01)
    nn.init.constant_(ours.bias, loss.initial_bias)
    if stock.out_features == K + 1:  # not one of an earlier call
        rows = min(C, K + 1)
        order = [*range(1, K + 1), 0][:rows]
        ours.weight[:rows] = stock.weight[order]
        if loss.prior_prob is None:
            ours.bias[:rows] = stock.bias[order]
    return ours


@torch.no_grad()
def use_in_retinanet(head: RetinaNetClassificationHead, loss: ClassificationLoss) -> None:
    require_type(head, RetinaNetClassificationHead, LongTailClassificationHead)
    require_classes(loss, head.num_classes, f"RetinaNet has a column for each label from 0 to {head.num_classes - 1}")
    require_dense(loss, "torchvision's RetinaNet")
    z = torch.linspace(-3, 2, loss.num_logits)[None]
    if loss.num_logits != loss.num_classes or not torch.allclose(loss.cpu().probs(z)[:, :-1], z.sigmoid()):
        raise InputError(
            f"torchvision's RetinaNet scores by one sigmoid for each class, and {type(loss).__name__} does not: it has "
            f"{loss.num_logits} logits for {loss.num_classes} classes, or other scores. Choose another sigmoid loss"
        )
    head.__class__ = LongTailClassificationHead
    head.cls_loss = loss.to(head.cls_logits.weight.device)
    nn.init.constant_(head.cls_logits.bias, loss.initial_bias)


def require_type(part: nn.Module, *known: type) -> None:
    if type(part) not in known:
        raise InputError(
            f"long_tail replaces torchvision's {known[0].__name__}, and the model's is {type(part).__name__}, whose "
            f"own code would be lost: derive it from {known[-1].__name__} of eql_d2.modeling.torchvision_detectors"
        )


def require_classes(loss: ClassificationLoss, expected: int, reason: str) -> None:
    if loss.num_classes != expected:
        raise InputError(
            f"{type(loss).__name__} has {loss.num_classes} classes, the model {expected}: {reason}. Build the loss "
            f"with num_classes={expected}"
        )
