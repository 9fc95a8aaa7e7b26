"""What one logit of a sigmoid loss costs, and the slope of that: each term is written once, here.

A term maps a :class:`Logistic` of z, any shape, and its own arguments (numbers, or tensors that broadcast) to l(z) and
l'(z). It may not change z; what the Logistic gives is its own, to be changed where nobody differentiates. It asks for
each function once, for p last: p's memory may be that of z. The eager blocks, the compiled pass, autograd (under
``torch.compile`` and ``torch.func``) and the sums by category of :mod:`eql_d2.losses.fused` all call the same term.
"""

import torch

from eql_d2.losses import functional


class Logistic:
    """log(1 + e^z), p = sigmoid(z) and 1 - p = sigmoid(-z), each made when it is asked for.

    Args:
        z: any shape.
        softplus, p: memory for the first two, or None; that of p may be z.
    """

    def __init__(self, z: torch.Tensor, softplus: torch.Tensor | None = None, p: torch.Tensor | None = None):
        self.z = z
        self._for_softplus, self._for_p = softplus, p

    @property
    def softplus(self) -> torch.Tensor:
        return functional.softplus(self.z, out=self._for_softplus)

    @property
    def p(self) -> torch.Tensor:
        return torch.sigmoid(self.z, out=self._for_p)

    @property
    def not_p(self) -> torch.Tensor:
        """1 - p itself would lose digits as p nears 1."""
        return self.z.neg().sigmoid_()


def cross_entropy(logistic: Logistic) -> tuple[torch.Tensor, torch.Tensor]:
    """l(z) = log(1 + e^z) and l'(z) = p."""
    return logistic.softplus, logistic.p


def focal(logistic: Logistic, gamma) -> tuple[torch.Tensor, torch.Tensor]:
    """l(z) = p^gamma log(1 + e^z) and l'(z) = p^gamma (p + gamma (1 - p) log(1 + e^z)).

    In closed form, value and slope are finite at any finite z; fvcore's gradient is NaN at +-1e4 for gamma below 1.

    Args:
        gamma: >= 0; a number, or a tensor of one for each category.
    """
    softplus, not_p, p = logistic.softplus, logistic.not_p, logistic.p
    p_gamma = power(p, gamma)
    if torch.is_tensor(gamma):
        not_p, gamma = times(not_p, gamma), 1
    slope = plus_product(p, not_p, softplus, gamma)
    return times(softplus, p_gamma), times(slope, p_gamma)


def asymmetric(logistic: Logistic, gamma: float, margin: float) -> tuple[torch.Tensor, torch.Tensor]:
    """With p_m = max(p - margin, 0) and l = -log(1 - p_m): l(z) = p_m^gamma l, and where p > margin

    l'(z) = p (1 - p) p_m^gamma (1 / (1 - p_m) + gamma l / p_m), whose last factor nears 1 as p_m does 0.
    """
    softplus = None if margin else logistic.softplus
    not_p, p = logistic.not_p, logistic.p
    tiny = torch.finfo(p.dtype).tiny
    p_m = (p - margin).clamp_(min=0)
    not_p_m = (not_p + margin).clamp_(min=tiny)
    loss = torch.log1p(p_m / not_p_m) if softplus is None else softplus
    slope = not_p.clamp(min=tiny) / not_p_m
    if not gamma:  # 0^0 is 1
        return loss, times(times(slope, p), p_m > 0)
    slope = plus_product(slope, loss / p_m.clamp(min=tiny), not_p, gamma)
    focus = power(p_m, gamma)
    return times(loss, focus), times(times(p, slope), focus)


def times(x: torch.Tensor, y) -> torch.Tensor:
    """x * y, in x's memory where nobody differentiates."""
    return x * y if torch.is_grad_enabled() else x.mul_(y)


def plus_product(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor, factor: float) -> torch.Tensor:
    """x + factor * y * z, in x's memory where nobody differentiates."""
    return torch.addcmul(x, y, z, value=factor, out=None if torch.is_grad_enabled() else x)


def power(p: torch.Tensor, gamma) -> torch.Tensor:
    """p^gamma of p in [0, 1]; where autograd differentiates it, without its infinite slope at 0."""
    if torch.is_grad_enabled():
        p = p.clamp(min=torch.finfo(p.dtype).tiny)
    return p**gamma
