"""Federated loss with a softmax."""

import torch
from torch.nn import functional as F

from eql_d2.data.frequencies import Counts
from eql_d2.losses import fused
from eql_d2.losses.base import SoftmaxLoss
from eql_d2.losses.build import CLS_LOSS_REGISTRY
from eql_d2.losses.federated_loss import DrawsSubset


@CLS_LOSS_REGISTRY.register()
class SoftmaxFederatedLoss(DrawsSubset, SoftmaxLoss):
    """In each step only a small set of categories competes: those of the batch, and some drawn at random.

    L = (1 / R) sum_i -log (e^{z_{i, y_i}} / (e^{z_{i, bg}} + sum_{j in S_i} e^{z_ij}))

    S_i is the S of :class:`FederatedLoss`, drawn anew in each step: the categories of the batch's foreground RoIs, and
    others until there are ``subset_size``. Told which categories an image was checked for (``negatives``), RoIs of the
    image leave the others out, too. Scores are the softmax over all.

    The softmax of "Probabilistic two-stage detection" (Zhou et al., arXiv:2103.07461), whose federated loss is of
    sigmoids, has no paper that we know of; it is what users ask for who need one distribution. With as many categories
    as there are it is cross-entropy.

    Args:
        num_classes: K.
        frequencies: counts of the training set, K categories.
        subset_size: >= 1, the least number of categories in S (default 50, as of :class:`FederatedLoss`).
        power: >= 0, others are drawn with probabilities ~ (images of the category)^power (default 0.5).
    """

    uses_negatives = True

    def __init__(self, num_classes: int, *, frequencies: Counts, subset_size: int = 50, power: float = 0.5):
        super().__init__(num_classes)
        self.register_subset(frequencies, subset_size, power)

    def compute(self, logits, rois):
        competing = self.draw_subset(rois.gt_classes, rois.generator).expand(len(logits), -1)
        if rois.negatives is not None:
            competing = competing & rois.negatives
        column, foreground = fused.own_entry(rois.gt_classes, self.num_classes)
        competing = competing.scatter(1, column, competing.gather(1, column) | foreground)
        competing = torch.cat([competing, competing.new_ones(len(logits), 1)], dim=1)
        losses = F.cross_entropy(logits.masked_fill(~competing, -torch.inf), rois.gt_classes, reduction="none")
        if rois.negatives is None:
            return losses
        return losses * (rois.negatives.gather(1, column) | ~foreground)[:, 0]
