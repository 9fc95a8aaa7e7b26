"""Vector-scaling loss (VS)."""

import torch
from torch.nn import functional as F

from eql_d2.data.frequencies import Counts
from eql_d2.errors import InputError
from eql_d2.losses import functional
from eql_d2.losses.base import SoftmaxLoss
from eql_d2.losses.build import CLS_LOSS_REGISTRY


@CLS_LOSS_REGISTRY.register()
class VectorScalingLoss(SoftmaxLoss):
    """Temperatures of CDT and offsets of logit adjustment, in one loss.

    L = -(1 / R) sum_i log softmax(z_i / a + tau log pi)_{y_i},    a_j = (max n / n_j)^gamma

    From "Label-Imbalanced and Group-Sensitive Classification under Overparameterization" (Kini et al., NeurIPS 2021,
    arXiv:2103.01550): the offsets rule the start of a training, the temperatures its end, when the training error is
    zero. ``tau`` 0 is :class:`ClassDependentTemperatureLoss`, ``gamma`` 0 is :class:`LogitAdjustedLoss`. Scores are
    softmax(z).

    Deviations, as of these two: background, column K, which the paper has not, has temperature 1 and offset 0, like the
    most frequent category, and a category without any sample counts as one. n_j counts objects.

    Args:
        num_classes: K.
        frequencies: counts of the training set, K categories, with instance counts.
        gamma: >= 0, of the temperatures (default 0.3, of the authors' code for CIFAR; on LVIS v1 the rarest category is
            then divided by 26, and the configs choose 0.1).
        tau: >= 0, of the offsets (default 1, of the authors' code).
    """

    temperature: torch.Tensor  # (K + 1,) float64
    offset: torch.Tensor  # (K + 1,) float64

    def __init__(
        self,
        num_classes: int,
        *,
        frequencies: Counts,
        gamma: float = 0.3,
        tau: float = 1.0,
    ):
        super().__init__(num_classes)
        for name, value in (("gamma", gamma), ("tau", tau)):
            if not 0 <= value < float("inf"):
                raise InputError(f"{name} must be in [0, inf), got {value}")

        def log_prior(frequencies):
            return functional.log_prior(frequencies.require_instance_count())

        def temperature(frequencies):
            return functional.with_background((-gamma * log_prior(frequencies)).exp(), 1)

        def offset(frequencies):
            return functional.with_background(tau * log_prior(frequencies), 0)

        self.register_derived("temperature", frequencies, temperature)
        self.register_derived("offset", frequencies, offset)

    def compute(self, logits, rois):
        scaled = logits / self.temperature.to(logits.dtype) + self.offset.to(logits.dtype)
        return F.cross_entropy(scaled, rois.gt_classes, reduction="none")
