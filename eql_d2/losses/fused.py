"""Losses that make their gradient along with their value, in one pass. Shapes as in :mod:`eql_d2.losses.base`.

A sigmoid loss is one term l of a negative's logit, l(z_ij); only the own entry of a foreground RoI, that of its
category, is another, l+(-z_ij). So no (R, K) target or weight is built: every entry is taken for a negative, then the R
own ones are put in by index. On a CPU this goes by blocks of RoIs, so that what l needs on the way stays in its cache.

Under ``torch.compile`` and the transforms of ``torch.func`` the same sums are left to autograd.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch.nn import functional as F

from eql_d2.losses import one_pass
from eql_d2.losses.terms import Logistic, cross_entropy, focal

BLOCK = 1 << 18  # numbers in a block: a few of its size, 1 MB in fp32, fit into the second-level cache of a core

# With AVX-512, torch's log1p has a load that is masked out for all numbers but -0.0. If its page of memory was never
# touched, such a load is slow, and being masked out it does not touch it: until a -0.0 comes by, log1p takes 20 times
# as long, so softplus 10 times and torch's own BCE 5 times. Here comes one; 16 make a vector.
torch.log1p(torch.full((16,), -0.0, device="cpu"))


def sigmoid_cross_entropy(logits, gt_classes, **weights) -> torch.Tensor:
    """(R,) sum_j w_ij BCE(z_ij, y_ij). Arguments: see :class:`SigmoidSum`."""
    return SigmoidSum(cross_entropy, **weights).rows(logits, gt_classes)


def sigmoid_focal(logits, gt_classes, gamma: float, **weights) -> torch.Tensor:
    """(R,) sum_j w_ij (1 - p_t)^gamma (-log p_t), where p_t is sigmoid(z_ij) if y_ij = 1, else sigmoid(-z_ij).

    Arguments: see :class:`SigmoidSum`.
    """
    return SigmoidSum(focal, (gamma,), **weights).rows(logits, gt_classes)


@dataclass
class SigmoidSum:
    """(R,) sums over categories of w_ij l_ij, with their gradient: l_ij = l+(-z_ij) where y_ij = 1, else l(z_ij).

    Args:
        term: l, as in :mod:`eql_d2.losses.terms`. With a tail, it must be 0 at -inf, and its slope.
        arguments: what l takes besides the logits: numbers, or (K,) tensors, one number a category.
        positive_term: l+, with its arguments bound; None: l.
        tail: (K,), 1 (else 0) for the categories whose w_ij is 0 in the foreground RoIs of other categories.
        positive_weight: factor of w_ij where y_ij = 1; a number or (K,).
        negative_weight: (K,) factor of w_ij where y_ij = 0; None: 1.
        row_weight: (R,), factor of w_ij for all j.
        negatives: (R, K) bool, False where w_ij is 0.
        compiled: whether to use ``torch.compile``, where it works.
        sums_by_category: whether :attr:`pulls` is made.
    """

    term: Callable
    arguments: tuple = ()
    positive_term: Callable | None = None
    tail: torch.Tensor | None = None
    positive_weight: float | torch.Tensor = 1.0
    negative_weight: torch.Tensor | None = None
    row_weight: torch.Tensor | None = None
    negatives: torch.Tensor | None = None
    compiled: bool | None = False
    sums_by_category: bool = False
    # (K,) sums of |d rows_i / dz_ij| over a category's own RoIs, and over the others; of the last call of `rows`
    pulls: tuple[torch.Tensor, ...] = field(default=(), init=False)

    def rows(self, logits: torch.Tensor, gt_classes: torch.Tensor) -> torch.Tensor:
        """
        Args:
            logits: (R, K) float32 or float64, R > 0.
            gt_classes: (R,) int64 in [0, K].
        """
        self._cast(logits.dtype)
        if is_transformed():
            return self._by_autograd(logits, gt_classes)
        return with_gradient_of(partial(self._made, gt_classes=gt_classes), logits)

    def _cast(self, dtype: torch.dtype) -> None:
        """Tensors of one number a category to the logits' type: once, not in each block."""
        self.arguments = tuple(a.to(dtype) if torch.is_tensor(a) else a for a in self.arguments)
        if torch.is_tensor(self.positive_weight):
            self.positive_weight = self.positive_weight.to(dtype)
        if self.negative_weight is not None:
            self.negative_weight = self.negative_weight.to(dtype)
        if self.tail is not None:
            self.tail = self.tail.to(dtype)

    # ---- value and gradient by hand ----

    def _made(self, logits, with_gradient: bool, gt_classes):
        """(R,) rows and their (R, K) gradient."""
        if self.compiled and not self.sums_by_category:
            made = one_pass.rows_and_gradient(self, logits, gt_classes)
            if made is not None:
                return made
        column, foreground = own_entry(gt_classes, logits.shape[1])
        unknown = None if self.negatives is None else ~self.negatives
        own_loss, own_slope = self._own_entries(logits, column, foreground, unknown)
        gradient = torch.empty_like(logits) if with_gradient or self.sums_by_category else None
        blocks = list(in_blocks(logits, gradient, unknown, foreground, column, own_loss))
        memory = torch.empty_like(blocks[0][0])  # one for all, so that it stays in the cache
        total = torch.cat([self._block(memory[: len(block[0])], *block) for block in blocks])
        if gradient is not None:
            gradient.scatter_(1, column, own_slope)
        if self.row_weight is not None:
            total = total * self.row_weight
            if gradient is not None:
                gradient.mul_(self.row_weight[:, None])
        if self.sums_by_category:
            self.pulls = self._pulls(gradient, column, foreground)
        return total, gradient

    def _block(self, memory, z, gradient, unknown, foreground, column, own_loss):
        """(r,) sums of some rows, and the slopes of negatives into ``gradient``; without the rows' own weight.

        Args:
            memory: like z, for the losses.
        """
        if self.tail is not None:  # -inf, in effect: no loss, no slope, and no mask
            lowest = torch.finfo(z.dtype).min
            z = torch.addcmul(z, foreground.to(z.dtype), self.tail, value=lowest, out=gradient)
        loss, slope = self.term(Logistic(z, memory, gradient), *self.arguments)
        if unknown is not None:
            loss, slope = loss.masked_fill_(unknown, 0), slope.masked_fill_(unknown, 0)
        if gradient is not None and slope is not gradient:
            gradient.copy_(slope)
        if self.negative_weight is None:
            return loss.scatter_(1, column, own_loss).sum(dim=1)
        if gradient is not None:
            gradient.mul_(self.negative_weight)
        return torch.addmv(own_loss[:, 0], loss.scatter_(1, column, 0), self.negative_weight)

    def _own_entries(self, logits, column, foreground, unknown):
        """(R, 1) loss and slope: of a foreground RoI a positive's, of background the last column's, a negative's."""
        own = logits.gather(1, column)
        arguments = [a[column] if torch.is_tensor(a) else a for a in self.arguments]
        if self.positive_term is None:
            loss, slope = self.term(Logistic(torch.where(foreground, -own, own)), *arguments)
        else:
            loss, slope = (
                torch.where(foreground, positive, negative)
                for positive, negative in zip(
                    self.positive_term(Logistic(-own)), self.term(Logistic(own), *arguments), strict=True
                )
            )
        slope = torch.where(foreground, -slope, slope)
        if self.negative_weight is not None or torch.is_tensor(self.positive_weight) or self.positive_weight != 1:
            weights = (self._at(weight, own, column) for weight in (self.positive_weight, self.negative_weight))
            weight = torch.where(foreground, *weights)
            loss, slope = loss * weight, slope * weight
        if unknown is not None:
            own_unknown = unknown.gather(1, column)
            loss, slope = loss.masked_fill(own_unknown, 0), slope.masked_fill(own_unknown, 0)
        return loss, slope

    @staticmethod
    def _at(weight: float | torch.Tensor | None, own, column) -> torch.Tensor:
        if torch.is_tensor(weight):
            return weight[column]
        return own.new_full((), 1.0 if weight is None else weight)

    @staticmethod
    def _pulls(gradient, column, foreground):
        """Sums of the gradient's absolute values over each category's own RoIs and over the others."""
        own = gradient.gather(1, column)
        pulled_up = gradient.new_zeros(gradient.shape[1])
        pulled_up.scatter_add_(0, column[:, 0], own.abs().mul_(foreground)[:, 0])
        # Left out for a moment, since a difference of sums would lose digits.
        pushed_down = gradient.scatter_(1, column, own * ~foreground).sum(dim=0)
        gradient.scatter_(1, column, own)
        return pulled_up, pushed_down

    # ---- the same, for autograd ----

    def _by_autograd(self, logits, gt_classes):
        K = logits.shape[1]
        label = torch.arange(K, device=logits.device) == gt_classes[:, None]
        if self.positive_term is None:
            loss, slope = self.term(Logistic(torch.where(label, -logits, logits)), *self.arguments)
        else:
            negative, positive = self.term(Logistic(logits), *self.arguments), self.positive_term(Logistic(-logits))
            loss, slope = (torch.where(label, own, other) for own, other in zip(positive, negative, strict=True))
        weight = self.weight(label, gt_classes, logits)
        if self.sums_by_category:
            pull = (weight * slope).detach()
            self.pulls = (pull * label).sum(dim=0), (pull * ~label).sum(dim=0)
        return (weight * loss).sum(dim=1)

    def weight(self, label, gt_classes, logits):
        """w, which broadcasts to (R, K).

        Args:
            label: (R, K) bool, y.
        """
        dtype, K = logits.dtype, logits.shape[1]
        weight = torch.ones_like(label, dtype=dtype) if self.negative_weight is None else self.negative_weight
        if self.tail is not None:
            weight = weight - (gt_classes[:, None] < K) * self.tail * weight
        weight = torch.where(label, self.positive_weight, weight)
        if self.row_weight is not None:
            weight = weight * self.row_weight[:, None]
        return weight if self.negatives is None else weight * self.negatives


def softmax_cross_entropy_without(left_out, logits, gt_classes) -> torch.Tensor:
    """(R,) -log softmax(z_i)_{y_i}, with a softmax over the classes that are not left out.

    Args:
        left_out: (R, C) bool, never True at a RoI's own class.
        logits: (R, C) float32 or float64, R > 0.
        gt_classes: (R,) int64 in [0, C).
    """
    own_column = gt_classes[:, None]
    lowest = torch.finfo(logits.dtype).min
    if is_transformed():
        return F.cross_entropy(logits.masked_fill(left_out, lowest), gt_classes, reduction="none")

    def formula(logits, with_gradient):
        gradient = torch.empty_like(logits) if with_gradient else None
        log_p = []
        for z, spared, column, slope in in_blocks(logits, left_out, own_column, gradient):
            # -inf, in effect. masked_fill would branch at every entry, and a random mask is hard to predict.
            z = torch.add(z, spared.to(z.dtype), alpha=lowest)
            p = torch.softmax(z, dim=1, out=slope)
            log_p.append(own_log_probability(z, p, column))
        if gradient is not None:
            gradient.scatter_add_(1, own_column, gradient.new_full(own_column.shape, -1))
        return -torch.cat(log_p)[:, 0], gradient

    return with_gradient_of(formula, logits)


def own_log_probability(logits, p, own_column) -> torch.Tensor:
    """(R, 1) log p at the (R, 1) columns, of p = softmax(logits) (R, C); finite even where p is 0."""
    largest_p = p.amax(dim=1, keepdim=True)  # 1 / sum_k e^(z_k - max z)
    return logits.gather(1, own_column) - logits.amax(dim=1, keepdim=True) + largest_p.log()


def own_and_others(logits, own_column):
    """Of p = softmax(logits) (R, C), y the (R, 1) columns: (R, 1) -log p_y and 1 - p_y, and p with 0 at y.

    1 - p_y is summed from the others: the difference would lose digits as p_y nears 1.
    """
    p = logits.softmax(dim=1)
    own_log_p = own_log_probability(logits, p, own_column)
    others = p.scatter_(1, own_column, 0)
    rest = others.sum(dim=1, keepdim=True)
    return torch.where(rest < 0.5, -torch.log1p(-rest), -own_log_p), rest, others


def blocks_of_rows(x: torch.Tensor) -> Iterator[slice]:
    """Slices that together are the rows of ``x``; on a GPU, where every operation costs a launch, one of all."""
    R = len(x)
    size = _rows_of_a_block(x)
    yield from (slice(start, start + size) for start in range(0, R, size))


def in_blocks(x: torch.Tensor, *others: torch.Tensor | None) -> Iterator[tuple]:
    """``x`` and other tensors of its rows, block by block as of :func:`blocks_of_rows`; None stays None."""
    size = _rows_of_a_block(x)
    if size >= len(x):
        return iter([(x, *others)])
    return zip(x.split(size), *(itertools.repeat(None) if other is None else other.split(size) for other in others))


def _rows_of_a_block(x: torch.Tensor) -> int:
    number = math.ceil(x.numel() / BLOCK) if x.device.type == "cpu" else 1
    return max(1, math.ceil(len(x) / max(1, number)))


def own_entry(gt_classes: torch.Tensor, num_classes: int):
    """(R, 1) column of each RoI's own category, and (R, 1) bool, whether it has one.

    Background has none; its column is the last category, where it is a negative as anywhere else.
    """
    return gt_classes.clamp(max=num_classes - 1)[:, None], (gt_classes < num_classes)[:, None]


def is_transformed() -> bool:
    """Whether ``torch.compile`` or a transform of ``torch.func`` is at work, which take a loss apart themselves."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def with_gradient_of(formula: Callable, logits: torch.Tensor) -> torch.Tensor:
    """The (R,) rows of ``formula(logits, with_gradient) -> (rows, (R, C) gradient or None)``, known to autograd.

    The gradient is made along with the value, where one is needed. It can be asked for again (``retain_graph``), but
    has no derivative: ``create_graph`` is a RuntimeError.
    """
    if not (torch.is_grad_enabled() and logits.requires_grad):
        return formula(logits, False)[0]
    return _GradientInForward.apply(logits, formula)


class _GradientInForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits, formula):
        rows, ctx.gradient = formula(logits, True)
        ctx.formula = formula
        ctx.save_for_backward(logits)
        return rows

    @staticmethod
    def backward(ctx, grad_output):
        if torch.is_grad_enabled():  # once_differentiable would take the gradient for a constant, and say nothing
            raise RuntimeError(
                "this loss makes its gradient itself, and that has no derivative: call backward without create_graph, "
                "or differentiate it with torch.func"
            )
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:  # a second backward: the first gave its buffer away
            gradient = ctx.formula(*ctx.saved_tensors, True)[1]
        return gradient.mul_(grad_output[:, None]), None
