"""Sigmoid loss with a weight and a focus for each category, and how far it pulls each category up and pushes it down.

Shapes as in :mod:`eql_d2.losses.base`.
"""

import torch

from eql_d2.losses import functional, fused


def category_weighted_sigmoid(
    logits: torch.Tensor,
    gt_classes: torch.Tensor,
    *,
    positive_weight: torch.Tensor,
    negative_weight: torch.Tensor,
    gamma: torch.Tensor | None = None,
    negatives: torch.Tensor | None = None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """(1 / R) sum_ij w_ij l_j(z_ij), with l_j(-z_ij) where j is the category of RoI i.

    l_j(z) = sigmoid(z)^gamma_j log(1 + e^z); w_ij is the positive weight of j where j is the category of RoI i, else
    its negative weight.

    Args:
        logits: (R, C) float32 or float64, R > 0.
        gt_classes: (R,) int64 in [0, C]; a RoI of class C has no category.
        positive_weight, negative_weight: (C,).
        gamma: (C,) >= 0; None: 0.
        negatives: (R, C) bool, False where w_ij is 0.

    Returns:
        The loss, with its gradient, and (C,) P and N: sums of R |dL / dz_ij| over a category's own RoIs and over the
        others.
    """
    R, C = logits.shape
    column, foreground = fused.own_entry(gt_classes, C)
    unknown = None if negatives is None else ~negatives
    is_positive = foreground if negatives is None else foreground & negatives.gather(1, column)
    positive_weight, negative_weight = (w.to(logits.dtype) for w in (positive_weight, negative_weight))
    own_weight = positive_weight[column] * is_positive
    gamma = None if gamma is None else gamma.to(logits.dtype)
    own_gamma = None if gamma is None else gamma[column]
    sums: list[torch.Tensor] = []

    def only_negatives(buffer):
        own = buffer.gather(1, column).masked_fill_(foreground, 0)
        buffer.scatter_(1, column, own)
        return buffer if unknown is None else buffer.masked_fill_(unknown, 0)

    def formula(logits, _with_gradient):
        # Of the own entries, -z; a RoI without one has a z that is weighed by 0, and may be anything finite.
        own = -logits.gather(1, column).masked_fill_(~is_positive, 0)
        buffer = torch.empty_like(logits)
        loss = only_negatives(_value(logits, gamma, buffer)).sum(dim=0) * negative_weight
        total = loss.sum() + (own_weight * _value(own, own_gamma)).sum()
        gradient = only_negatives(_slope(logits, gamma, buffer))
        own_slope = own_weight * _slope(own, own_gamma)
        pulled_up = gradient.new_zeros(C).scatter_add_(0, column[:, 0], own_slope[:, 0])
        sums[:] = pulled_up, gradient.sum(dim=0) * negative_weight
        return total, gradient.mul_(negative_weight).scatter_add_(1, column, -own_slope)

    loss = fused.with_gradient_of(formula, logits) / R
    pulled_up, pushed_down = sums
    return loss, (pulled_up, pushed_down)


def _value(z, gamma, out=None):
    """l(z), in ``out`` if given."""
    loss = functional.softplus(z, out=out)
    return loss if gamma is None else loss.mul_(z.sigmoid().pow_(gamma))


def _slope(z, gamma, out=None):
    """l'(z) = p^gamma (p + gamma (1 - p) log(1 + e^z)), p = sigmoid(z), in ``out`` if given."""
    if gamma is None:
        return torch.sigmoid(z, out=out)
    slope = functional.softplus(z, out=out).mul_(z.neg().sigmoid_()).mul_(gamma)
    p = z.sigmoid()
    return slope.add_(p).mul_(p.pow_(gamma))
