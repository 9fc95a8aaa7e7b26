"""Equalization Loss (EQL)."""

import torch

from eql_d2.data.frequencies import LVIS_TAIL, Counts, Tail
from eql_d2.errors import InputError
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

    Section 4.2 spares the tail only where nothing is known: w_ij = 1 for all categories that the image is known to
    contain or known not to contain. That is ``unchecked="equalize"``: with c_ij = 1 for the categories that are known
    of RoI i (``negatives`` of the call),

    w_ij = 1 - E(r_i) T(f_j) (1 - y_ij) (1 - c_ij)

    Deviations from the authors' code: the tail is any :class:`TailRule` instead of a lambda that fits LVIS v0.5 only;
    the mask is a buffer on the model's device; the last category gets its box loss; theirs has no section 4.2 rule,
    which "doesn't lead to a better result" (eql.detectron2 issue 4). Deviation from the paper in that rule: a category
    with unmarked objects in the image, which the paper takes for known, is known of its own RoIs only.

    Args:
        num_classes: K.
        frequencies: counts of the training set, K categories.
        tail: which categories T selects, a :class:`TailRule`, or for short an image count (int), a share of images
            (float) or groups ("rc"); by default image count <= 100, the same 915 categories of LVIS v0.5 as the
            authors' lambda of 0.00177.
        unchecked: of the categories that nothing is known of, "ignore" (default) lets none take part, as in every
            sigmoid loss; "equalize" lets all but the tail take part, and spares no other. Without ``negatives`` all are
            known and the tail is spared by Eq. 4; "equalize" then is an error.
        exclude_background: whether E(r) keeps background as a negative example of the tail (default, Eq. 4). Else
            E is 1 for every RoI, as in the paper's ablation, and the tail has no negatives at all.
        prior_prob: score every category starts with (default of the authors' code).

    Raises:
        InputError: another ``unchecked``.
    """

    compiled = False

    def __init__(
        self,
        num_classes: int,
        *,
        frequencies: Counts,
        tail: Tail = LVIS_TAIL,
        unchecked: str = "ignore",
        exclude_background: bool = True,
        prior_prob: float = 0.001,
    ):
        super().__init__(num_classes, prior_prob=prior_prob)
        if unchecked not in ("ignore", "equalize"):
            raise InputError(f"unchecked must be 'ignore' or 'equalize', got '{unchecked}'")
        self.unchecked = unchecked
        self.needs_negatives = unchecked == "equalize"
        self.exclude_background = exclude_background
        self.register_tail_mask(frequencies, tail)

    def compute(self, logits, rois):
        tail: torch.Tensor | None = self.tail
        negatives = rois.negatives
        if self.unchecked == "equalize" or not self.exclude_background:
            negatives, tail = self._negatives(rois), None
        return fused.sigmoid_cross_entropy(
            logits,
            rois.gt_classes,
            tail=tail,
            negatives=negatives,
            compiled=self.compiled,
        )

    def _negatives(self, rois):
        """(R, K) bool: w_ij."""
        gt_classes, negatives = rois.gt_classes, rois.negatives
        label = torch.arange(self.num_classes, device=gt_classes.device) == gt_classes[:, None]
        spared = self.tail_mask & ~label
        if self.exclude_background:
            spared &= (gt_classes < self.num_classes)[:, None]
        if self.unchecked == "equalize":
            return ~spared | negatives
        return ~spared if negatives is None else negatives & ~spared
