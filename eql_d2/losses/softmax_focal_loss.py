"""Softmax focal loss."""

from detectron2.config import configurable

from eql_d2.losses import functional
from eql_d2.losses.base import SoftmaxLoss
from eql_d2.losses.build import CLS_LOSS_REGISTRY


@CLS_LOSS_REGISTRY.register()
class SoftmaxFocalLoss(SoftmaxLoss):
    """Softmax cross-entropy in which well-classified RoIs count less.

    L = -(1 / R) sum_i (1 - p_iy)^gamma log p_iy,   p = softmax(z)

    The multi-class form of Eq. 4 of "Focal Loss for Dense Object Detection" (Lin et al., ICCV 2017,
    arXiv:1708.02002), without alpha, as in most ports.

    Background: category K like any other. Most background RoIs are easy, so it is mostly they that count less.

    Deviation from public ports: none in value; 1 - p_y is summed from the other categories instead of subtracted, so it
    keeps its digits, and its gradient, where p_y rounds to 1.

    Args:
        num_classes: K.
        gamma: >= 0, how fast the weight falls as a RoI becomes easy (default 2, of the paper's sigmoid form); 0 is
            cross-entropy.
    """

    @configurable
    def __init__(self, num_classes: int, *, gamma: float = 2.0):
        super().__init__(num_classes)
        if not gamma >= 0:
            raise ValueError(f"gamma must be >= 0, got {gamma}")
        self.gamma = gamma

    def compute(self, logits, gt_classes, features, negatives):
        log_odds = functional.softmax_log_odds(logits, gt_classes)
        return functional.focal(log_odds, self.gamma).mean()
