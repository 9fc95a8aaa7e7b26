"""Asymmetric loss (ASL)."""

from functools import partial

import torch
from detectron2.config import configurable

from eql_d2.errors import InputError
from eql_d2.losses import functional, fused
from eql_d2.losses.base import SigmoidLoss
from eql_d2.losses.build import CLS_LOSS_REGISTRY


@CLS_LOSS_REGISTRY.register()
class AsymmetricLoss(SigmoidLoss):
    """Focal loss with a stronger focus for negatives than for positives, and none at all on easy negatives.

    L = (1 / R) sum_i sum_j y_ij L+ + (1 - y_ij) L-
    L+ = -(1 - p)^gamma_pos log p
    L- = -p_m^gamma_neg log(1 - p_m),   p_m = max(p - margin, 0)

    with p = sigmoid(z_ij). From "Asymmetric Loss For Multi-Label Classification" (Ridnik et al., ICCV 2021,
    arXiv:2009.14119).

    Background: no category's example, so it has K negatives. Those with a score of at most ``margin`` give no loss and
    exactly no gradient, whatever the RoI.

    Deviations from the authors' code: divided by R (theirs is a sum over the batch); the gradient is the formula's
    whole one, as in their ``AsymmetricLossOptimized``, while their ``AsymmetricLoss`` by default takes the focusing
    weight for a constant; no clamp at 1e-8, which gives positives below z = -18.4 no gradient.

    Args:
        num_classes: K.
        gamma_neg: >= 0, focus on hard negatives (default of the authors' code).
        gamma_pos: >= 0, focus on hard positives (default of the authors' code).
        margin: in [0, 1), the score up to which a negative is ignored (default of the authors' code).
        prior_prob: score every category starts with (default 0.001, of the EQL authors' code; the authors start from
            a bias of 0).
    """

    @configurable
    def __init__(
        self,
        num_classes: int,
        *,
        gamma_neg: float = 4.0,
        gamma_pos: float = 1.0,
        margin: float = 0.05,
        prior_prob: float = 0.001,
    ):
        super().__init__(num_classes, prior_prob=prior_prob)
        for name, gamma in (("gamma_neg", gamma_neg), ("gamma_pos", gamma_pos)):
            if not gamma >= 0:
                raise InputError(f"{name} must be >= 0, got {gamma}")
        if not 0 <= margin < 1:
            raise InputError(f"margin must be in [0, 1), got {margin}")
        self.gamma_neg = gamma_neg
        self.gamma_pos = gamma_pos
        self.margin = margin

    def compute(self, logits, gt_classes, features, negatives):
        positive = partial(fused.focal, gamma=self.gamma_pos)
        return fused.sigmoid_loss(self.negative, positive, logits, gt_classes, negatives=negatives)

    def negative(self, z, loss, slope):
        """L- and its derivative, see :func:`eql_d2.losses.fused.sigmoid_loss`.

        With l = -log(1 - p_m): L- = p_m^gamma_neg l, and where p > margin
        dL- / dz = p (1 - p) p_m^gamma_neg (1 / (1 - p_m) + gamma_neg l / p_m), whose last factor nears 1 as p_m does 0.
        """
        tiny = torch.finfo(z.dtype).tiny
        p, not_p = z.sigmoid(), z.neg().sigmoid_()  # 1 - p itself would lose digits as p nears 1
        p_m = (p - self.margin).clamp_(min=0)
        not_p_m = (not_p + self.margin).clamp_(min=tiny)
        if self.margin:
            torch.div(p_m, not_p_m, out=loss).log1p_()
        else:
            functional.softplus(z, out=loss)
        torch.div(loss, p_m.clamp(min=tiny), out=slope).mul_(self.gamma_neg).mul_(not_p)
        slope.add_(not_p.clamp_(min=tiny).div_(not_p_m)).mul_(p)
        if self.gamma_neg == 0:  # 0^0 is 1
            slope.mul_(p_m > 0)
            return
        focus = p_m.pow_(self.gamma_neg)
        loss.mul_(focus)
        slope.mul_(focus)
