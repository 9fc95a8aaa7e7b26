"""Equalization Loss (EQL)."""

from detectron2.config import configurable

from eql_d2.data.frequencies import ClassFrequencies, TailRule
from eql_d2.losses import fused
from eql_d2.losses.base import SigmoidLoss
from eql_d2.losses.build import CLS_LOSS_REGISTRY


@CLS_LOSS_REGISTRY.register()
class EqualizationLoss(SigmoidLoss):
    """A foreground RoI of one category is no negative example for the tail categories.

    L = (1 / R) sum_i sum_j w_ij BCE(z_ij, y_ij)                      (Eq. 3)
    w_ij = 1 - E(r_i) T(f_j) (1 - y_ij)                               (Eq. 4)

    E(r_i) is 1 where RoI i is foreground, so a background RoI still pushes every category down; T(f_j) is 1 for the
    tail. From "Equalization Loss for Long-Tailed Object Recognition" (Tan et al., CVPR 2020, arXiv:2003.05176).

    Deviations from the authors' code: the tail is any :class:`TailRule` instead of a lambda that fits LVIS v0.5 only;
    the mask is a buffer on the model's device; the last category gets its box loss. The paper's section 4.2 rule on
    image-level negatives, absent from the authors' code too, is the argument ``negatives`` of the call.

    Args:
        num_classes: K.
        frequencies: counts of the training set, K categories.
        tail: which categories T selects; by default image count <= 100, the same 915 categories of LVIS v0.5 as the
            authors' lambda of 0.00177.
        prior_prob: score every category starts with (default of the authors' code).
    """

    compiled = False

    @configurable
    def __init__(
        self,
        num_classes: int,
        *,
        frequencies: ClassFrequencies,
        tail: TailRule = TailRule(),
        prior_prob: float = 0.001,
    ):
        super().__init__(num_classes, prior_prob=prior_prob)
        self.register_tail_mask(frequencies, tail)

    def compute(self, logits, gt_classes, features, negatives):
        return fused.sigmoid_cross_entropy(
            logits,
            gt_classes,
            tail=self.tail_mask,
            negatives=negatives,
            compiled=self.compiled,
        )
