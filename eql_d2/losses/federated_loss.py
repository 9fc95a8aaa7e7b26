"""Federated loss."""

import torch

from eql_d2.data.frequencies import Counts
from eql_d2.errors import InputError
from eql_d2.losses import fused
from eql_d2.losses.base import ClassificationLoss, SigmoidLoss
from eql_d2.losses.build import CLS_LOSS_REGISTRY


class DrawsSubset(ClassificationLoss):
    """What a federated loss draws in each step: S, the categories that it trains.

    One exponential clock a category, whose rate is its weight: the order in which they ring is that of drawing one
    category after the other without replacement. (``torch.multinomial`` waits for the GPU to check its input.)
    """

    subset_size: int
    rate: torch.Tensor  # (K,) float64, the weights

    def register_subset(self, frequencies: Counts, subset_size: int, power: float) -> None:
        """Keep the weights, (images of a category)^power.

        Raises:
            InputError: a ``subset_size`` below 1, or a ``power`` below 0.
        """
        if subset_size < 1:
            raise InputError(f"subset_size must be at least 1, got {subset_size}")
        if not 0 <= power < float("inf"):
            raise InputError(f"power must be in [0, inf), got {power}")
        self.subset_size = subset_size

        def rate(frequencies):
            return frequencies.image_count.double().clamp(min=1) ** power

        self.register_derived("rate", frequencies, rate)

    def draw_subset(self, gt_classes, generator=None) -> torch.Tensor:
        """(K,) bool, a new draw of S: the categories of (R,) labels, and others until there are ``subset_size``."""
        present = self.rate.new_zeros(self.num_classes + 1, dtype=torch.bool)
        present = present.scatter(0, gt_classes, True)[:-1]
        time = torch.empty_like(self.rate).exponential_(generator=generator) / self.rate
        size = min(self.subset_size, self.num_classes)
        first = time.masked_fill(present, -1).topk(size, largest=False).indices
        return present.scatter(0, first, True)


@CLS_LOSS_REGISTRY.register()
class FederatedLoss(DrawsSubset, SigmoidLoss):
    """In each step only a small set of categories is trained: those of the batch, and some drawn at random.

    L = (1 / R) sum_i sum_{j in S} BCE(z_ij, y_ij)

    S holds every category of the batch's foreground RoIs. If these are fewer than ``subset_size``, others are drawn
    without replacement, each time with probabilities proportional to n_j^power, where n_j counts images. So a
    rare category is rarely a negative. Named after LVIS's federated labels, of which it needs none. From "Probabilistic
    two-stage detection" (Zhou et al., arXiv:2103.07461); Detectron2 has it as ``USE_FED_LOSS``.

    Background RoIs are negatives of the categories in S.

    Each process has its own S, as in the authors' code: the categories of the joined batch would often fill it. Two
    random images of LVIS v1 have 7 categories on average, eight 28 and sixteen 53, so raise ``subset_size`` where one
    process has many images.

    Deviations from Detectron2's code: background takes no place in S; where there are fewer than ``subset_size``
    categories S is all of them (there ``torch.multinomial`` fails); a category without any images counts as one (there
    it is never drawn, so its score stays what it was at the start); K logits, without the untrained column K; a prior,
    which the authors' CenterNet2 has too.

    Args:
        num_classes: K.
        frequencies: counts of the training set, K categories.
        subset_size: >= 1, the least number of categories in S (default of Detectron2 and CenterNet2); from K on it
            is sigmoid cross-entropy.
        power: >= 0 (default of Detectron2 and CenterNet2); 0 draws all alike.
        prior_prob: score every category starts with (default of CenterNet2).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        frequencies: Counts,
        subset_size: int = 50,
        power: float = 0.5,
        prior_prob: float = 0.01,
    ):
        super().__init__(num_classes, prior_prob=prior_prob)
        self.register_subset(frequencies, subset_size, power)

    def compute(self, logits, rois):
        trained = self.draw_subset(rois.gt_classes, rois.generator).expand(len(logits), -1)
        if rois.negatives is not None:
            trained = trained & rois.negatives
        return fused.sigmoid_cross_entropy(logits, rois.gt_classes, negatives=trained)
