"""Losses that make their gradient along with their value, in the same buffer. Shapes as in :mod:`eql_d2.losses.base`.

A sigmoid loss is one function l of a negative's logit, l(z_ij); only the own entry of a foreground RoI, that of its
category, is l(-z_ij). So no (R, K) target or weight is built: every entry is taken for a negative, the R own ones are
then put in by index, and after the sum the buffer takes the gradient.
"""

from functools import partial
from typing import Callable, Optional

import torch
from torch.nn import functional as F


def sigmoid_cross_entropy(logits, gt_classes, **weights) -> torch.Tensor:
    """(1 / R) sum_ij w_ij BCE(z_ij, y_ij): summed over categories, averaged over RoIs.

    l(z) = log(1 + e^z) and l'(z) = sigmoid(z).

    Args:
        logits: (R, K) float32 or float64, R > 0.
        gt_classes: (R,) int64 in [0, K].
        weights: w; see :func:`_mean_over_rois`.
    """
    return _mean_over_rois(_softplus, _sigmoid, logits, gt_classes, **weights)


def sigmoid_focal(logits, gt_classes, gamma: float, **weights) -> torch.Tensor:
    """(1 / R) sum_ij w_ij (1 - p_t)^gamma (-log p_t), where p_t is sigmoid(z_ij) if y_ij = 1, else sigmoid(-z_ij).

    l(z) = p^gamma log(1 + e^z) and l'(z) = p^(gamma + 1) + gamma (1 - p) l(z), with p = sigmoid(z). In closed form both
    are finite at any finite logit; fvcore's gradient is NaN at +-1e4 for gamma below 1. Arguments as in
    :func:`sigmoid_cross_entropy`, but for ``tail``.
    """
    value, slope = partial(_focal, gamma=gamma), partial(_focal_slope, gamma=gamma)
    return _mean_over_rois(value, slope, logits, gt_classes, **weights)


# l and l': (z, out) -> a buffer, `out` where one will do. The slope finds l(z) in `out`, or where there is a tail z.


def _softplus(z, out):
    return F.softplus(z, threshold=50, out=out)


def _sigmoid(z, out):
    return torch.sigmoid(z, out=out)


def _focal(z, out, gamma):
    return _softplus(z, out).mul_(z.sigmoid().pow_(gamma))


def _focal_slope(z, out, gamma):
    p = z.neg().sigmoid_()  # 1 - p: the difference itself would lose digits as p nears 1
    out.mul_(p)
    return torch.sigmoid(z, out=p).pow_(gamma + 1).add_(out, alpha=gamma)


def _mean_over_rois(
    value: Callable,
    slope: Callable,
    logits: torch.Tensor,
    gt_classes: torch.Tensor,
    *,
    tail: Optional[torch.Tensor] = None,
    positive_weight: float = 1.0,
    row_weight: Optional[torch.Tensor] = None,
    negatives: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """(1 / R) sum_ij w_ij l(+-z_ij) with its gradient.

    Args:
        value, slope: l and l'.
        tail: (K,) bool, categories whose w_ij is 0 in the foreground RoIs of other categories.
        positive_weight: factor of w_ij where y_ij = 1.
        row_weight: (R,), factor of w_ij for all j.
        negatives: (R, K) bool, False where w_ij is 0.
    """
    R, K = logits.shape
    own_column, foreground = own_entry(gt_classes, K)
    unknown = None if negatives is None else ~negatives
    if tail is not None:
        of_foreground, of_tail = foreground.to(logits.dtype), tail.to(logits.dtype)

    def without_tail(z, out):
        """z with -inf, in effect, where the tail is left out: no loss, no slope, and no (R, K) mask."""
        if tail is None:
            return z
        lowest = torch.finfo(z.dtype).min
        return torch.addcmul(z, of_foreground, of_tail, value=lowest, out=out)

    def put_own(own, factor, out):
        out.scatter_(1, own_column, torch.where(foreground, factor * own, own))
        return out if unknown is None else out.masked_fill_(unknown, 0)

    def formula(logits, with_gradient):
        buffer = torch.empty_like(logits)
        own = logits.gather(1, own_column)
        own = torch.where(foreground, -own, own)
        own_loss = value(own, torch.empty_like(own))
        loss = value(without_tail(logits, buffer), buffer)
        loss = put_own(own_loss, positive_weight, loss).sum(dim=1)
        total = (loss if row_weight is None else loss * row_weight).sum()
        if not with_gradient:
            return total, None
        # Leaving the tail out anew takes less than a second buffer to remember z in.
        gradient = slope(without_tail(logits, buffer), buffer)
        gradient = put_own(slope(own, own_loss), -positive_weight, gradient)
        return total, gradient if row_weight is None else gradient.mul_(row_weight[:, None])

    return with_gradient_of(formula, logits) / R


def softmax_cross_entropy_without(left_out, logits, gt_classes) -> torch.Tensor:
    """-(1 / R) sum_i log softmax(z_i)_{y_i}, with a softmax over the classes that are not left out.

    Args:
        left_out: (R, C) bool, never True at a RoI's own class.
        logits: (R, C) float32 or float64, R > 0.
        gt_classes: (R,) int64 in [0, C).
    """

    def formula(logits, with_gradient):
        log_p = logits.masked_fill(left_out, -torch.inf).log_softmax(dim=1)
        total = F.nll_loss(log_p, gt_classes, reduction="sum")
        if not with_gradient:
            return total, None
        own = gt_classes[:, None]
        return total, log_p.exp_().scatter_add_(1, own, log_p.new_full(own.shape, -1))

    return with_gradient_of(formula, logits) / len(logits)


def own_entry(gt_classes: torch.Tensor, num_classes: int):
    """(R, 1) column of each RoI's own category, and (R, 1) bool, whether it has one.

    Background has none; its column is the last category, where it is a negative as anywhere else.
    """
    return gt_classes.clamp(max=num_classes - 1)[:, None], (gt_classes < num_classes)[:, None]


def with_gradient_of(formula: Callable, logits: torch.Tensor) -> torch.Tensor:
    """The scalar of ``formula(logits, with_gradient) -> (scalar, its gradient or None)``, known to autograd.

    The gradient is made along with the value, where one is needed. It can be asked for again (``retain_graph``), but
    has no derivative: ``create_graph`` is a RuntimeError.
    """
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return formula(logits, False)[0]
    return _GradientInForward.apply(logits, formula)


class _GradientInForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, formula):
        total, ctx.gradient = formula(logits, True)
        ctx.formula = formula
        ctx.save_for_backward(logits)
        return total

    @staticmethod
    def backward(ctx, grad_output):
        if (
            torch.is_grad_enabled()
        ):  # once_differentiable would take the gradient for a constant, and say nothing
            raise RuntimeError(
                "this loss makes its gradient itself, and that has no derivative: call backward without create_graph"
            )
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:  # a second backward: the first gave its buffer away
            gradient = ctx.formula(*ctx.saved_tensors, True)[1]
        return gradient.mul_(grad_output), None
