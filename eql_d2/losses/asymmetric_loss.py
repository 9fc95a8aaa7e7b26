"""Asymmetric loss (ASL)."""

from functools import partial

from eql_d2.errors import InputError
from eql_d2.losses.base import SigmoidLoss
from eql_d2.losses.build import CLS_LOSS_REGISTRY
from eql_d2.losses.fused import SigmoidSum
from eql_d2.losses.terms import asymmetric, focal


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

    def compute(self, logits, rois):
        losses = SigmoidSum(
            asymmetric,
            (self.gamma_neg, self.margin),
            positive_term=partial(focal, gamma=self.gamma_pos),
            negatives=rois.negatives,
        )
        return losses.rows(logits, rois.gt_classes)
