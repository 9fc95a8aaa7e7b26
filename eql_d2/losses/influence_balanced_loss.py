"""Influence-balanced loss (IB)."""

import torch
from torch.nn import functional as F

from eql_d2.data.frequencies import Counts
from eql_d2.errors import InputError
from eql_d2.losses import functional, fused
from eql_d2.losses.base import SoftmaxLoss, at_least_fp32
from eql_d2.losses.build import CLS_LOSS_REGISTRY
from eql_d2.losses.iterations import CountsSteps

EPSILON = 1e-3  # added to the influence, as in the authors' code


@CLS_LOSS_REGISTRY.register()
class InfluenceBalancedLoss(CountsSteps, SoftmaxLoss):
    """A sample that would move the decision boundary much counts less, and so does one of a frequent category.

    L = (1 / R) sum_i w_i CE(z_i, y_i)
    w_i ~ lambda_{y_i} / (||p_i - y_i||_1 ||h_i||_1 + 0.001),    lambda_j ~ 1 / n_j

    p = softmax(z), and h is the classifier's input, so that the product is the L1 norm of the gradient of CE by the
    classifier's weights. From "Influence-Balanced Loss for Imbalanced Visual Classification" (Park et al., ICCV 2021,
    arXiv:2110.02444). Plain cross-entropy until ``start_iter``, after which the boundary is only fine-tuned.

    Background, column K, has no count: w_i is 1 on background RoIs, and 1 in the mean over the foreground RoIs of the
    batch (of each process, with several). n_j counts objects, as the paper's samples have one label each; a category
    without any counts as one.

    Deviations from the authors' code: no alpha (1000 in their scripts), which is only a scale of the loss that must be
    tuned anew for each model: the batch mean of 1 replaces it. The weight is a constant in the gradient by default, as
    in the paper's text; their code propagates through it as well, which rewards large errors and features.

    Args:
        num_classes: K.
        frequencies: counts of the training set, K categories, with instance counts.
        start_iter: >= 0, iterations with plain cross-entropy first. Default 0, but half of
            the training is advised, as in the authors' scripts.
        detach: whether the weight is a constant in the gradient.
    """

    class_weight: torch.Tensor  # (K + 1,) float64

    def __init__(
        self,
        num_classes: int,
        *,
        frequencies: Counts,
        start_iter: int = 0,
        detach: bool = True,
    ):
        super().__init__(num_classes)
        if start_iter < 0:
            raise InputError(f"start_iter / START_ITER must be >= 0, got {start_iter}")
        self.start_iter = start_iter
        self.detach = detach

        def class_weight(frequencies):
            counts = frequencies.require_instance_count()
            weight = functional.mean_one(1 / counts.double().clamp(min=1), counts)
            return functional.with_background(weight, 1)

        self.register_derived("class_weight", frequencies, class_weight)

    def compute(self, logits, rois):
        if rois.features is None:
            raise InputError(
                "InfluenceBalancedLoss weighs by the classifier's input: call it with features, the (R, D) "
                "tensor that the logits were computed from"
            )
        own = rois.gt_classes[:, None]
        started = self.reached(self.start_iter, "InfluenceBalancedLoss takes over from plain cross-entropy")
        if fused.is_transformed() or not self.detach:
            loss = F.cross_entropy(logits, rois.gt_classes, reduction="none")
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach):
                rest = logits.softmax(dim=1).scatter(1, own, 0).sum(dim=1)
                weight = torch.where(started, self.weight(rest, rois), 1)
            return loss * weight

        def formula(logits, with_gradient):
            loss, rest, others = fused.own_and_others(logits, own)
            weight = torch.where(started, self.weight(rest[:, 0], rois), 1)
            gradient = others.scatter_(1, own, -rest).mul_(weight[:, None]) if with_gradient else None
            return loss[:, 0] * weight, gradient

        return fused.with_gradient_of(formula, logits)

    def weight(self, rest, rois) -> torch.Tensor:
        """(R,) w, from the (R,) probabilities of all but the RoI's own class, half of ||p - y||_1."""
        foreground = rois.gt_classes < self.num_classes
        feature_norm = at_least_fp32(rois.features).abs().sum(dim=1).to(rest.dtype)
        class_weight = self.class_weight.to(rest.dtype)[rois.gt_classes]
        weight = class_weight / (2 * rest * feature_norm + EPSILON)
        total = (weight * foreground).sum().clamp(min=torch.finfo(weight.dtype).tiny)
        return torch.where(foreground, weight * (foreground.sum() / total), 1)
