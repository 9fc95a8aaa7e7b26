"""Softmax Equalization Loss (SEQL)."""

import torch

from eql_d2.data.frequencies import LVIS_TAIL, Counts, Tail
from eql_d2.errors import InputError
from eql_d2.losses import functional, fused
from eql_d2.losses.base import SoftmaxLoss
from eql_d2.losses.build import CLS_LOSS_REGISTRY


@CLS_LOSS_REGISTRY.register()
class SoftmaxEqualizationLoss(SoftmaxLoss):
    """EQL for softmax: most of the time, the tail is left out of the denominator of other categories' RoIs.

    L = -(1 / R) sum_i log( e^{z_iy} / sum_k w_ik e^{z_ik} )
    w_ik = 1 - beta_ik E(r_i) T(f_k) (1 - y_ik),   beta_ik ~ Bernoulli(gamma)

    T(f_k) is 1 for the tail. The draw lets the negative gradients through to the tail with probability 1 - gamma.
    From "Equalization Loss for Long-Tailed Object Recognition" (Tan et al., CVPR 2020, arXiv:2003.05176), which has it
    for image classification.

    Background: column K is never left out. E(r_i) is 1 for foreground RoIs, as in the paper's sigmoid form, so a
    background RoI pushes every category down; classification has no background and the paper no E
    here (``apply_on="all"``).

    Deviations from public ports (the authors released none for detection): a category is left out by a logit of
    -inf, where theirs take the logarithm of a sum of exponentials and overflow at logits of +-100; beta is drawn on
    the logits' device, for each RoI and category; the tail is a rule on images, not on samples.

    Args:
        num_classes: K.
        frequencies: counts of the training set, K categories.
        tail: which categories T selects, a :class:`TailRule`, or for short an image count (int), a share of images
            (float) or groups ("rc"); by default image count <= 100, the tail of the sigmoid form on LVIS.
        gamma: in [0, 1], how likely a tail category is left out (default of the port in BagofTricks-LT).
        apply_on: "fg" leaves the tail out for foreground RoIs only, "all" for background RoIs too.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        frequencies: Counts,
        tail: Tail = LVIS_TAIL,
        gamma: float = 0.9,
        apply_on: str = "fg",
    ):
        super().__init__(num_classes)
        if not 0 <= gamma <= 1:
            raise InputError(f"gamma is a probability in [0, 1], got {gamma}")
        if apply_on not in ("fg", "all"):
            raise InputError(f"apply_on must be 'fg' or 'all', got '{apply_on}'")
        self.gamma = gamma
        self.apply_on = apply_on
        self.register_tail_mask(frequencies, tail)

    def compute(self, logits, rois):
        left_out = self.draw_left_out(rois.gt_classes, rois.generator)
        return fused.softmax_cross_entropy_without(left_out, logits, rois.gt_classes)

    def draw_left_out(self, gt_classes, generator=None) -> torch.Tensor:
        """(R, K + 1) bool, a new draw of where w is 0."""
        foreground = gt_classes < self.num_classes if self.apply_on == "fg" else None
        chance = self.gamma * functional.with_background(self.tail_mask, False)
        left_out = functional.bernoulli(chance, len(gt_classes), foreground, generator)
        return left_out.scatter_(1, gt_classes[:, None], False)  # the true class takes part
