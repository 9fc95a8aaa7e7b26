"""Softmax focal loss."""

import torch
from torch.nn import functional as F

from eql_d2.errors import InputError
from eql_d2.losses import fused
from eql_d2.losses.base import SoftmaxLoss
from eql_d2.losses.build import CLS_LOSS_REGISTRY
from eql_d2.losses.terms import power


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

    def __init__(self, num_classes: int, *, gamma: float = 2.0):
        super().__init__(num_classes)
        if not gamma >= 0:
            raise InputError(f"gamma must be >= 0, got {gamma}")
        self.gamma = gamma

    def compute(self, logits, rois):
        if fused.is_transformed():
            rest = logits.softmax(dim=1).scatter(1, rois.gt_classes[:, None], 0).sum(dim=1)
            return power(rest, self.gamma) * F.cross_entropy(logits, rois.gt_classes, reduction="none")
        return fused.with_gradient_of(self._formula(rois.gt_classes), logits)

    def _formula(self, gt_classes):
        """(R,) losses and their gradient: with l = -log p_y, dL/dz_k = f p_k for k != y, and -f (1 - p_y) for k = y,
        where f = (1 - p_y)^gamma (1 + gamma p_y l / (1 - p_y)), whose fraction nears 1 as p_y does.
        """
        own = gt_classes[:, None]

        def formula(logits, with_gradient):
            loss, rest, others = fused.own_and_others(logits, own)
            focus = rest**self.gamma
            total = (focus * loss)[:, 0]
            if not with_gradient:
                return total, None
            ratio = loss / rest.clamp(min=torch.finfo(rest.dtype).tiny)
            factor = focus * (1 + self.gamma * (-loss).exp() * ratio)
            return total, others.scatter_(1, own, -rest).mul_(factor)

        return formula
