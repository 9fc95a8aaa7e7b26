"""Class-dependent temperatures (CDT)."""

import torch
from torch.nn import functional as F

from eql_d2.data.frequencies import Counts
from eql_d2.errors import InputError
from eql_d2.losses import functional
from eql_d2.losses.base import SoftmaxLoss
from eql_d2.losses.build import CLS_LOSS_REGISTRY


@CLS_LOSS_REGISTRY.register()
class ClassDependentTemperatureLoss(SoftmaxLoss):
    """In training a rare category's logit is divided by more, so it must grow larger to be right.

    L = -(1 / R) sum_i log softmax(z_i / a)_{y_i},    a_j = (max n / n_j)^gamma >= 1

    From "Identifying and Compensating for Feature Deviation in Imbalanced Deep Learning" (Ye et al., arXiv:2001.01385).
    Scores are softmax(z), undivided.

    Deviations: background, column K, which the paper has not, has temperature 1, like the most frequent category, and a
    category without any sample counts as one. n_j counts objects: the paper's samples have one label each, as RoIs do.

    Args:
        num_classes: K.
        frequencies: counts of the training set, K categories, with instance counts.
        gamma: >= 0; 0 is plain cross-entropy (default 0.1, the end of the range searched for iNaturalist, the largest
            of its datasets; on LVIS v1 the rarest category is then divided by 3.0).
    """

    temperature: torch.Tensor  # (K + 1,) float64

    def __init__(self, num_classes: int, *, frequencies: Counts, gamma: float = 0.1):
        super().__init__(num_classes)
        if not 0 <= gamma < float("inf"):
            raise InputError(f"gamma must be in [0, inf), got {gamma}")

        def temperature(frequencies):
            log_prior = functional.log_prior(frequencies.require_instance_count())
            return functional.with_background((-gamma * log_prior).exp(), 1)

        self.register_derived("temperature", frequencies, temperature)

    def compute(self, logits, rois):
        return F.cross_entropy(logits / self.temperature.to(logits.dtype), rois.gt_classes, reduction="none")
