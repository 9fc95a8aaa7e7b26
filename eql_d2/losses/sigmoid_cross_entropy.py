"""Sigmoid cross-entropy, the baseline of the sigmoid losses."""

from eql_d2.losses.base import SigmoidLoss
from eql_d2.losses.build import CLS_LOSS_REGISTRY


@CLS_LOSS_REGISTRY.register()
class SigmoidCrossEntropy(SigmoidLoss):
    """One binary classifier a category, all of them trained by every RoI.

    L = (1 / R) sum_i sum_j BCE(z_ij, y_ij), with y_i = 0 for background RoIs.

    Deviation from Detectron2's ``USE_SIGMOID_CE``: K logits (its column K gets no gradient), and a prior, without which
    the loss of 1,203 categories starts at 834 instead of 2.9.

    Args:
        num_classes: K.
        prior_prob: score every category starts with (default 0.001, of the EQL authors' code).
    """

    compiled = False

    def __init__(self, num_classes: int, *, prior_prob: float = 0.001):
        super().__init__(num_classes, prior_prob=prior_prob)
