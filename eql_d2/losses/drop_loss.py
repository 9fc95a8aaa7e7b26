"""DropLoss."""

import torch

from eql_d2.data.frequencies import LVIS_TAIL, Counts, Tail
from eql_d2.losses import functional
from eql_d2.losses.build import CLS_LOSS_REGISTRY
from eql_d2.losses.equalization_loss import EqualizationLoss
from eql_d2.losses.statistics import sum_over_processes


@CLS_LOSS_REGISTRY.register()
class DropLoss(EqualizationLoss):
    """EQL that also spares the tail most of the background: the rarer the tail in the batch, the more of it.

    L = (1 / R) sum_i sum_j w_ij BCE(z_ij, y_ij),   w_ij = 1 - T(f_j) (1 - y_ij) (1 - b_ij)

    T(f_j) is 1 for the tail, and b_ij is 0 on foreground RoIs, as in EQL. On background RoIs b_ij ~ Bernoulli(rho) is
    drawn for each RoI and category, where rho is the share of tail categories among the batch's foreground RoIs. From
    "DropLoss for Long-Tail Instance Segmentation" (Hsieh et al., AAAI 2021, arXiv:2104.06402).

    A batch without foreground has no rho; nothing is dropped then, as in the authors' code, where rho is NaN. With
    several processes rho is that of the joined batch; in the authors' code it is each process's own.

    Deviations from the authors' code: as for EQL, the tail is any :class:`TailRule` instead of a lambda for one version
    of LVIS; the mask is a buffer on the model's device; the last category gets its box loss.

    Args:
        num_classes: K.
        frequencies: counts of the training set, K categories.
        tail: which categories T selects, a :class:`TailRule`, or for short an image count (int), a share of images
            (float) or groups ("rc"); by default image count <= 100, the same categories of LVIS v0.5 and v1 as the
            authors' lambdas of 0.00177 and 0.0010062.
        prior_prob: score every category starts with (default of the authors' code).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        frequencies: Counts,
        tail: Tail = LVIS_TAIL,
        prior_prob: float = 0.001,
    ):
        super().__init__(num_classes, frequencies=frequencies, tail=tail, prior_prob=prior_prob)

    def compute(self, logits, rois):
        trained = ~self.draw_dropped(rois.gt_classes, rois.generator)
        if rois.negatives is not None:
            trained &= rois.negatives
        return super().compute(logits, rois._replace(negatives=trained))

    def without_rois(self):
        self.tail_share(self.tail_mask.new_zeros(0, dtype=torch.int64))

    def draw_dropped(self, gt_classes, generator=None) -> torch.Tensor:
        """(R, K) bool, a new draw of what is dropped from background RoIs."""
        draw = functional.rand(len(gt_classes), self.num_classes, device=gt_classes.device, generator=generator)
        dropped = draw >= self.tail_share(gt_classes)
        dropped &= self.tail_mask
        dropped &= (gt_classes == self.num_classes)[:, None]
        return dropped

    def tail_share(self, gt_classes) -> torch.Tensor:
        """rho, a scalar in [0, 1]; 1 where there is no foreground."""
        of_tail = functional.with_background(self.tail_mask, False)[gt_classes]
        of_foreground = gt_classes < self.num_classes
        tail, foreground = sum_over_processes(torch.stack([of_tail.sum(), of_foreground.sum()]))
        return torch.where(foreground > 0, tail / foreground, 1)
