"""Asymmetric loss (ASL)."""

import math

import torch
from detectron2.config import configurable
from torch.nn import functional as F

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
                raise ValueError(f"{name} must be >= 0, got {gamma}")
        if not 0 <= margin < 1:
            raise ValueError(f"margin must be in [0, 1), got {margin}")
        self.gamma_neg = gamma_neg
        self.gamma_pos = gamma_pos
        self.margin = margin

    def compute(self, logits, gt_classes, features, negatives):
        column, foreground = fused.own_entry(gt_classes, self.num_classes)
        own = logits.gather(1, column)
        own_loss = torch.where(
            foreground, functional.focal(own, self.gamma_pos), self.negative_loss(own)
        )
        loss = self.negative_loss(logits).scatter(1, column, own_loss)
        if negatives is not None:
            loss = loss * negatives
        return loss.sum() / len(logits)

    def negative_loss(self, logits) -> torch.Tensor:
        """L- of every logit."""
        p = logits.sigmoid()
        shifted = (p - self.margin).clamp(min=torch.finfo(p.dtype).tiny)
        # 1 - p_m = (1 - p) + margin, in logarithms: 1 - p alone rounds to 0 for large logits.
        log_margin = logits.new_full((), math.log(self.margin) if self.margin else -math.inf)
        log_one_minus_shifted = torch.logaddexp(F.logsigmoid(-logits), log_margin)
        return -(shifted**self.gamma_neg) * log_one_minus_shifted * (p > self.margin)
