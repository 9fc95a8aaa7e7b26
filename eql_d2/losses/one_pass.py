"""Value and gradient of the sigmoid losses in one compiled pass, for :mod:`eql_d2.losses.fused`.

One exponential serves all of it, e = exp(-|z|):

    log(1 + e^z) = max(z, 0) + log(1 + e),   sigmoid(|z|) = 1 / (1 + e),   sigmoid(-|z|) = e / (1 + e)

The compiler (TorchInductor: C++ on a CPU, Triton on a GPU) makes one loop of it that reads logits and writes gradients.
"""

import logging
from collections.abc import Callable
from functools import cache

import torch
from detectron2.utils.logger import log_first_n

# Terms: log(1 + e^z), p and 1 - p, with p = sigmoid(z) -> l(z) and l'(z).


def cross_entropy(softplus, p, _not_p):
    """l(z) = log(1 + e^z) and l'(z) = p."""
    return softplus, p


def focal(softplus, p, not_p, gamma: float):
    """l(z) = p^gamma log(1 + e^z) and l'(z) = p^(gamma + 1) + gamma (1 - p) l(z)."""
    p_gamma = p**gamma
    loss = p_gamma * softplus
    return loss, p * p_gamma + gamma * not_p * loss


def loss_and_gradient(
    term: tuple, logits, gt_classes, tail, positive_weight, row_weight, negatives
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """(R,) sum_j w_ij l(+-z_ij) and its (R, K) gradient; None, with one warning, where nothing can be compiled.

    Args:
        term: :func:`cross_entropy` or :func:`focal`, and its further arguments.
        others: see :func:`eql_d2.losses.fused.sigmoid_loss`.
    """
    function = _compiled(*term)
    if function.broken:
        return None
    tail = None if tail is None else tail.to(logits.dtype)
    inputs = logits, gt_classes.int(), tail, positive_weight, row_weight, negatives
    if function.works:
        return function.call(*inputs)
    try:
        result = function.call(*inputs)
    except Exception as error:  # of any kind: no C++ compiler, one that fails, no Triton, a Python that is too new
        function.broken = True
        reason = str(error).strip().splitlines() or [type(error).__name__]
        log_first_n(
            logging.WARNING,
            f"CLS_LOSS.COMPILE: torch.compile does not work here, so the loss runs uncompiled, with the same result: "
            f"{reason[0]}",
            name=__name__,
        )
        return None
    function.works = True
    return result


class _Function:
    """A compiled function, and what is known of it since its first call, which compiles."""

    works = broken = False

    def __init__(self, function: Callable):
        # Symbolic sizes: R differs in each step, and each new number would be compiled anew.
        self.call = torch.compile(function, dynamic=True)


@cache
def _compiled(term: Callable, *arguments) -> _Function:
    def function(logits, gt_classes, tail, positive_weight, row_weight, negatives):
        K = logits.shape[1]
        label = gt_classes[:, None]
        own = torch.arange(K, dtype=torch.int32, device=logits.device) == label
        loss, slope = term(*_softplus_and_sigmoids(torch.where(own, -logits, logits)), *arguments)
        weight = torch.ones_like(label, dtype=logits.dtype)
        if tail is not None:
            weight = weight - (label < K) * tail
        weight = torch.where(own, positive_weight, weight)
        if row_weight is not None:
            weight = weight * row_weight[:, None]
        if negatives is not None:
            weight = weight * negatives
        return (weight * loss).sum(dim=1), torch.where(own, -weight, weight) * slope

    return _Function(function)


def _softplus_and_sigmoids(z):
    """log(1 + e^z), sigmoid(z) and sigmoid(-z)."""
    e = torch.exp(-z.abs())
    large = 1 / (1 + e)
    small = e * large
    positive = z >= 0
    softplus = z.clamp(min=0) + _log1p(e)
    return softplus, torch.where(positive, large, small), torch.where(positive, small, large)


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
