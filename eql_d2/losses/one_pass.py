"""Value and gradient of the sigmoid losses in one compiled pass, for :mod:`eql_d2.losses.fused`.

One exponential serves all of it, e = exp(-|z|):

    log(1 + e^z) = max(z, 0) + log(1 + e),   sigmoid(|z|) = 1 / (1 + e),   sigmoid(-|z|) = e / (1 + e)

The compiler (TorchInductor: C++ on a CPU, Triton on a GPU) makes one loop of it that reads logits and writes gradients.
"""

import logging
from collections.abc import Callable
from functools import cache

import torch

from eql_d2.losses.once import log_once
from eql_d2.losses.terms import Logistic


def rows_and_gradient(losses, logits, gt_classes) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(R,) sum_j w_ij l(+-z_ij) and its (R, K) gradient; None, with one warning, where nothing can be compiled.

    Args:
        losses: an :class:`eql_d2.losses.fused.SigmoidSum` whose terms of positives and negatives are one.
    """
    function = _compiled(losses.term, *losses.arguments)
    if function.broken:
        return None
    positive_weight = losses.positive_weight
    if not torch.is_tensor(positive_weight):
        positive_weight = logits.new_full((), positive_weight)
    weights = losses.tail, positive_weight, losses.negative_weight, losses.row_weight, losses.negatives
    inputs = logits, gt_classes.int(), *weights
    if function.works:
        return function(*inputs)
    try:
        result = function(*inputs)
    except Exception as error:  # of any kind: no C++ compiler, one that fails, no Triton, a Python that is too new
        function.broken = True
        reason = str(error).strip().splitlines() or [type(error).__name__]
        log_once(
            logging.WARNING,
            f"CLS_LOSS.COMPILE: torch.compile does not work here, so the loss runs uncompiled, with the same result: "
            f"{reason[0]}",
        )
        return None
    function.works = True
    return result


class _Function:
    """A compiled function, and what is known of it since its first call, which compiles."""

    works = broken = False

    def __init__(self, function: Callable):
        # Symbolic sizes: R differs in each step, and each new number would be compiled anew.
        self._call = torch.compile(function, dynamic=True)

    def __call__(self, *inputs):
        # Or a number such as gamma is symbolic too, and the compiler's cache on the disk hands the code that was made
        # for one gamma to a run with another.
        with torch._dynamo.config.patch(specialize_float=True):
            return self._call(*inputs)


@cache
def _compiled(term: Callable, *arguments) -> _Function:
    def function(logits, gt_classes, tail, positive_weight, negative_weight, row_weight, negatives):
        K = logits.shape[1]
        label = gt_classes[:, None]
        own = torch.arange(K, dtype=torch.int32, device=logits.device) == label
        loss, slope = term(OneExponential(torch.where(own, -logits, logits)), *arguments)
        weight = torch.ones_like(label, dtype=logits.dtype) if negative_weight is None else negative_weight
        if tail is not None:
            weight = weight - (label < K) * tail * weight
        weight = torch.where(own, positive_weight, weight)
        if row_weight is not None:
            weight = weight * row_weight[:, None]
        if negatives is not None:
            weight = weight * negatives
        return (weight * loss).sum(dim=1), torch.where(own, -weight, weight) * slope

    return _Function(function)


class OneExponential(Logistic):
    """A :class:`Logistic` whose three functions come from one exponential."""

    def __init__(self, z: torch.Tensor):
        self.z, self.e = z, torch.exp(-z.abs())
        self.small, self.large = self.e / (1 + self.e), 1 / (1 + self.e)

    @property
    def softplus(self) -> torch.Tensor:
        return self.z.clamp(min=0) + _log1p(self.e)

    @property
    def p(self) -> torch.Tensor:
        return torch.where(self.z >= 0, self.large, self.small)

    @property
    def not_p(self) -> torch.Tensor:
        return torch.where(self.z >= 0, self.small, self.large)


def _log1p(e):
    """log(1 + e) of e in [0, 1], as 2 artanh(s) = 2 (s + s^3 / 3 + s^5 / 5 + ...), s = e / (2 + e) <= 1 / 3.

    Unlike torch.log1p, a function call for every 16 numbers, it becomes a part of the loop.
    """
    s = e / (2 + e)
    last = 15 if e.dtype is torch.float32 else 35  # the next term is below 1e-8, in float64 1e-17
    series = torch.full_like(s, 1 / last)
    for n in range(last - 2, 0, -2):
        series = series * (s * s) + 1 / n
    return 2 * s * series
