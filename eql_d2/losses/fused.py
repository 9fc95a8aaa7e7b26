"""Losses that make their gradient along with their value, in one pass. Shapes as in :mod:`eql_d2.losses.base`.

A sigmoid loss is one function l of a negative's logit, l(z_ij); only the own entry of a foreground RoI, that of its
category, is another, l+(-z_ij). So no (R, K) target or weight is built: every entry is taken for a negative, then the R
own ones are put in by index. On a CPU this goes by blocks of RoIs, so that what l needs on the way stays in its cache.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch

from eql_d2.losses import one_pass
from eql_d2.losses.functional import softplus

BLOCK = 1 << 18  # numbers in a block: 1 MB in fp32, the second-level cache of a core

# With AVX-512, torch's log1p has a load that is masked out for all numbers but -0.0. If its page of memory was never
# touched, such a load is slow, and being masked out it does not touch it: until a -0.0 comes by, log1p takes 20 times
# as long, so softplus 10 times and torch's own BCE 5 times. Here comes one; 16 make a vector.
torch.log1p(torch.full((16,), -0.0, device="cpu"))


def sigmoid_cross_entropy(logits, gt_classes, *, compiled: bool = False, **weights) -> torch.Tensor:
    """(1 / R) sum_ij w_ij BCE(z_ij, y_ij): summed over categories, averaged over RoIs.

    l(z) = log(1 + e^z) and l'(z) = sigmoid(z).

    Args:
        logits: (R, K) float32 or float64, R > 0.
        gt_classes: (R,) int64 in [0, K].
        compiled: whether to use ``torch.compile``, where it works.
        weights: w; see :func:`sigmoid_loss`.
    """
    in_one_pass = (one_pass.cross_entropy,) if compiled else None
    return sigmoid_loss(_cross_entropy, _cross_entropy, logits, gt_classes, in_one_pass=in_one_pass, **weights)


def sigmoid_focal(logits, gt_classes, gamma: float, *, compiled: bool = False, **weights) -> torch.Tensor:
    """(1 / R) sum_ij w_ij (1 - p_t)^gamma (-log p_t), where p_t is sigmoid(z_ij) if y_ij = 1, else sigmoid(-z_ij).

    In closed form, value and gradient are finite at any finite logit; fvcore's gradient is NaN at +-1e4 for gamma below
    1. Arguments as in :func:`sigmoid_cross_entropy`.
    """
    term = partial(focal, gamma=gamma)
    in_one_pass = (one_pass.focal, gamma) if compiled else None
    return sigmoid_loss(term, term, logits, gt_classes, in_one_pass=in_one_pass, **weights)


# Terms: (z, loss, slope) write l(z) and l'(z) to buffers of z's shape. `slope` may be z itself.


def _cross_entropy(z, loss, slope):
    """l(z) = log(1 + e^z) and l'(z) = sigmoid(z)."""
    softplus(z, out=loss)
    torch.sigmoid(z, out=slope)


def focal(z, loss, slope, gamma):
    """l(z) = p^gamma log(1 + e^z) and l'(z) = p^(gamma + 1) + gamma (1 - p) l(z), with p = sigmoid(z)."""
    softplus(z, out=loss)
    not_p = z.neg().sigmoid_()  # 1 - p itself would lose digits as p nears 1
    p = torch.sigmoid(z, out=slope)
    p_gamma = p**gamma
    loss.mul_(p_gamma)
    slope.mul_(p_gamma).addcmul_(not_p, loss, value=gamma)


def sigmoid_loss(
    negative: Callable,
    positive: Callable,
    logits: torch.Tensor,
    gt_classes: torch.Tensor,
    *,
    tail: torch.Tensor | None = None,
    positive_weight: float = 1.0,
    row_weight: torch.Tensor | None = None,
    negatives: torch.Tensor | None = None,
    in_one_pass: tuple | None = None,
) -> torch.Tensor:
    """(1 / R) sum_ij w_ij l_ij with its gradient: l_ij = l+(-z_ij) where y_ij = 1, else l(z_ij).

    Args:
        negative, positive: the terms l and l+, elementwise: (z, loss, slope) writes l(z) and l'(z) to the latter two,
            which have z's shape; slope may be z itself. With a tail, l must be 0 at -inf, and its slope.
        logits: (R, K) float32 or float64, R > 0.
        gt_classes: (R,) int64 in [0, K].
        tail: (K,) bool, categories whose w_ij is 0 in the foreground RoIs of other categories.
        positive_weight: factor of w_ij where y_ij = 1.
        row_weight: (R,), factor of w_ij for all j.
        negatives: (R, K) bool, False where w_ij is 0.
        in_one_pass: l, and l+ the same, as :func:`eql_d2.losses.one_pass.loss_and_gradient` takes it, to be compiled.
    """
    R, K = logits.shape
    column, foreground = own_entry(gt_classes, K)
    unknown = None if negatives is None else ~negatives
    if tail is not None:
        of_foreground, of_tail = foreground.to(logits.dtype), tail.to(logits.dtype)

    def own_entries(logits):
        """(R, 1) loss and slope: of a foreground RoI a positive's, of background the last column's, a negative's."""
        own = logits.gather(1, column)
        loss, slope = torch.empty_like(own), torch.empty_like(own)
        negative(own, loss, slope)
        positive_loss, positive_slope = torch.empty_like(own), torch.empty_like(own)
        positive(-own, positive_loss, positive_slope)
        loss = torch.where(foreground, positive_weight * positive_loss, loss)
        return loss, torch.where(foreground, -positive_weight * positive_slope, slope)

    def put(values, own_values, rows=slice(None)):
        """Put the own entries in, and 0 where w is 0."""
        values.scatter_(1, column[rows], own_values[rows])
        return values if unknown is None else values.masked_fill_(unknown[rows], 0)

    def formula(logits, with_gradient):
        if in_one_pass is not None:
            weights = tail, positive_weight, row_weight, negatives
            compiled = one_pass.loss_and_gradient(in_one_pass, logits, gt_classes, *weights)
            if compiled is not None:
                losses, gradients = compiled
                return losses.sum(), gradients
        own_loss, own_slope = own_entries(logits)
        gradient = torch.empty_like(logits) if with_gradient else None
        sums = []
        for rows, loss in blocks_of_rows(logits):
            z, slope = logits[rows], torch.empty_like(loss) if gradient is None else gradient[rows]
            if tail is not None:  # -inf, in effect: no loss, no slope, and no mask
                lowest = torch.finfo(z.dtype).min
                z = torch.addcmul(z, of_foreground[rows], of_tail, value=lowest, out=slope)
            negative(z, loss, slope)
            sums.append(put(loss, own_loss, rows).sum(dim=1))
        loss = torch.cat(sums)
        if row_weight is not None:
            loss = loss * row_weight
        if gradient is not None:
            put(gradient, own_slope)
            if row_weight is not None:
                gradient.mul_(row_weight[:, None])
        return loss.sum(), gradient

    return with_gradient_of(formula, logits) / R


def softmax_cross_entropy_without(left_out, logits, gt_classes) -> torch.Tensor:
    """-(1 / R) sum_i log softmax(z_i)_{y_i}, with a softmax over the classes that are not left out.

    Args:
        left_out: (R, C) bool, never True at a RoI's own class.
        logits: (R, C) float32 or float64, R > 0.
        gt_classes: (R,) int64 in [0, C).
    """
    own_column = gt_classes[:, None]
    lowest = torch.finfo(logits.dtype).min

    def formula(logits, with_gradient):
        gradient = torch.empty_like(logits) if with_gradient else None
        log_p = []
        for rows, z in blocks_of_rows(logits):
            # -inf, in effect. masked_fill would branch at every entry, and a random mask is hard to predict.
            torch.add(logits[rows], z.copy_(left_out[rows]), alpha=lowest, out=z)
            p = torch.softmax(z, dim=1, out=None if gradient is None else gradient[rows])
            log_p.append(own_log_probability(z, p, own_column[rows]))
        if gradient is not None:
            gradient.scatter_add_(1, own_column, gradient.new_full(own_column.shape, -1))
        return -torch.cat(log_p).sum(), gradient

    return with_gradient_of(formula, logits) / len(logits)


def own_log_probability(logits, p, own_column) -> torch.Tensor:
    """(R, 1) log p at the (R, 1) columns, of p = softmax(logits) (R, C); finite even where p is 0."""
    largest_p = p.amax(dim=1, keepdim=True)  # 1 / sum_k e^(z_k - max z)
    return logits.gather(1, own_column) - logits.amax(dim=1, keepdim=True) + largest_p.log()


def blocks_of_rows(x: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Slices that together are the rows of ``x``, each with a buffer like x[slice], always the same memory.

    On a GPU, where every operation costs a launch, one slice is all of them.
    """
    R, C = x.shape
    number = math.ceil(x.numel() / BLOCK) if x.device.type == "cpu" else 1
    size = math.ceil(R / number)
    buffer = x.new_empty(size, C)
    for start in range(0, R, size):
        stop = min(start + size, R)
        yield slice(start, stop), buffer[: stop - start]


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
        if torch.is_grad_enabled():  # once_differentiable would take the gradient for a constant, and say nothing
            raise RuntimeError(
                "this loss makes its gradient itself, and that has no derivative: call backward without create_graph"
            )
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:  # a second backward: the first gave its buffer away
            gradient = ctx.formula(*ctx.saved_tensors, True)[1]
        return gradient.mul_(grad_output), None
