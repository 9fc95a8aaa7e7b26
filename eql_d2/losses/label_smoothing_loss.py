"""Label smoothing."""

import torch
from torch.nn import functional as F

from eql_d2.errors import InputError
from eql_d2.losses.base import SoftmaxLoss
from eql_d2.losses.build import CLS_LOSS_REGISTRY


@CLS_LOSS_REGISTRY.register()
class LabelSmoothingLoss(SoftmaxLoss):
    """Softmax cross-entropy towards labels that are right with probability 1 - epsilon, and else any class.

    L = -(1 / R) sum_i sum_k q_ik log softmax(z_i)_k,   q_ik = (1 - epsilon) y_ik + epsilon / C

    From "Rethinking the Inception Architecture for Computer Vision" (Szegedy et al., CVPR 2016, arXiv:1512.00567,
    section 7).

    Background: a class like any other, so C = K + 1, and background RoIs are smoothed too: the paper's formula for
    K + 1 classes, equal to ``F.cross_entropy(label_smoothing=epsilon)``. A background RoI is thereby asked for a score
    of epsilon / (K + 1) in every category: 8e-5 for the 1,203 of LVIS, close to the usual score threshold of 1e-4.
    ``apply_on="fg"`` keeps background RoIs at plain cross-entropy; a foreground RoI gives background its share
    epsilon / C in either case.

    Args:
        num_classes: K.
        epsilon: in [0, 1), probability mass that is spread evenly (default of the paper); 0 is cross-entropy.
        apply_on: "all" RoIs, or "fg" for foreground RoIs only.
    """

    def __init__(self, num_classes: int, *, epsilon: float = 0.1, apply_on: str = "all"):
        super().__init__(num_classes)
        if not 0 <= epsilon < 1:
            raise InputError(f"epsilon must be in [0, 1), got {epsilon}")
        if apply_on not in ("all", "fg"):
            raise InputError(f"apply_on must be 'all' or 'fg', got '{apply_on}'")
        self.epsilon = epsilon
        self.apply_on = apply_on

    def checked_width(self, logits):
        """(R, K) logits stay: without a background C is K, and its share of the mass would cost infinitely much."""
        return logits if logits.shape[1] == self.num_classes else super().checked_width(logits)

    def compute(self, logits, rois):
        smooth = F.cross_entropy(logits, rois.gt_classes, reduction="none", label_smoothing=self.epsilon)
        if self.apply_on == "all":
            return smooth
        plain = F.cross_entropy(logits, rois.gt_classes, reduction="none")
        return torch.where(rois.gt_classes < self.num_classes, smooth, plain)
