"""What one logit of a sigmoid loss costs, and the slope of that: each term is written once, here.

A term maps a :class:`Logistic` of z, any shape, and its own arguments (numbers, or tensors that broadcast) to l(z) and
l'(z). It may change neither z nor what the Logistic gives. The eager blocks, the compiled pass, autograd (under
``torch.compile`` and ``torch.func``) and the sums by category of :mod:`eql_d2.losses.fused` all call the same term.
"""

import torch

from eql_d2.losses import functional


class Logistic:
    """log(1 + e^z), p = sigmoid(z) and 1 - p = sigmoid(-z)."""

    def __init__(self, z: torch.Tensor):
        self.z = z
        self.softplus = functional.softplus(z)
        self.p = z.sigmoid()

    @property
    def not_p(self) -> torch.Tensor:
        """Made anew for the term that asks; 1 - p itself would lose digits as p nears 1."""
        return self.z.neg().sigmoid()


def cross_entropy(logistic: Logistic) -> tuple[torch.Tensor, torch.Tensor]:
    """l(z) = log(1 + e^z) and l'(z) = p."""
    return logistic.softplus, logistic.p


def focal(logistic: Logistic, gamma) -> tuple[torch.Tensor, torch.Tensor]:
    """l(z) = p^gamma log(1 + e^z) and l'(z) = p^gamma (p + gamma (1 - p) log(1 + e^z)).

    In closed form, value and slope are finite at any finite z; fvcore's gradient is NaN at +-1e4 for gamma below 1.

    Args:
        gamma: >= 0; a number, or a tensor of one for each category.
    """
    p_gamma = power(logistic.p, gamma)
    slope = torch.addcmul(logistic.p, logistic.not_p, logistic.softplus * gamma)
    return p_gamma * logistic.softplus, slope.mul_(p_gamma)


def asymmetric(logistic: Logistic, gamma: float, margin: float) -> tuple[torch.Tensor, torch.Tensor]:
    """With p_m = max(p - margin, 0) and l = -log(1 - p_m): l(z) = p_m^gamma l, and where p > margin

    l'(z) = p (1 - p) p_m^gamma (1 / (1 - p_m) + gamma l / p_m), whose last factor nears 1 as p_m does 0.
    """
    p, not_p = logistic.p, logistic.not_p
    tiny = torch.finfo(p.dtype).tiny
    p_m = (p - margin).clamp_(min=0)
    not_p_m = (not_p + margin).clamp_(min=tiny)
    loss = (p_m / not_p_m).log1p() if margin else logistic.softplus
    slope = (loss / p_m.clamp(min=tiny)).mul_(not_p).mul_(gamma)
    slope.add_(not_p.clamp(min=tiny).div_(not_p_m)).mul_(p)
    if gamma == 0:  # 0^0 is 1
        return loss, slope.mul_(p_m > 0)
    focus = power(p_m, gamma)
    return loss * focus, slope.mul_(focus)


def power(p: torch.Tensor, gamma) -> torch.Tensor:
    """p^gamma of p in [0, 1]; where autograd differentiates it, without its infinite slope at 0."""
    if torch.is_grad_enabled():
        p = p.clamp(min=torch.finfo(p.dtype).tiny)
    return p**gamma
