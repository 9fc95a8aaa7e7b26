"""Logit-adjusted softmax cross-entropy."""

import torch
from torch.nn import functional as F

from eql_d2.data.frequencies import Counts
from eql_d2.errors import InputError
from eql_d2.losses import functional
from eql_d2.losses.base import SoftmaxLoss
from eql_d2.losses.build import CLS_LOSS_REGISTRY


@CLS_LOSS_REGISTRY.register()
class LogitAdjustedLoss(SoftmaxLoss):
    """The class prior is added to the logits in training only, so that what they learn is free of it.

    L = -(1 / R) sum_i log softmax(z_i + tau log pi)_{y_i}            (Eq. 10)

    From "Long-Tail Learning via Logit Adjustment" (Menon et al., ICLR 2021, arXiv:2007.07314). Scores are softmax(z).
    For the post-hoc form, which corrects a model trained by cross-entropy, see ``MODEL.ROI_BOX_HEAD.CALIBRATION``.

    Deviations: the paper has no background, and pi is defined up to a factor that matters only against it. Here column
    K is adjusted by 0, and log pi is shifted so that the most frequent category has 0 too: no category then scores
    lower against background than it would without adjustment, uniform counts are plain cross-entropy, and one rare
    category more does not move the others (as a mean of 0 would). Without a shift every category would train e^-7 below
    background.

    pi_j counts objects: the paper's samples have one label each, as RoIs have. A category without any counts as one
    (the authors' code adds 1e-12 to the prior: 27 below in the logit).

    Args:
        num_classes: K.
        frequencies: counts of the training set, K categories, with instance counts.
        tau: >= 0, strength (default 1, of the paper: the balanced error's optimum); 0 is plain cross-entropy.
    """

    adjustment: torch.Tensor  # (K + 1,) float64

    def __init__(self, num_classes: int, *, frequencies: Counts, tau: float = 1.0):
        super().__init__(num_classes)
        if not 0 <= tau < float("inf"):
            raise InputError(f"tau must be in [0, inf), got {tau}")

        def adjustment(frequencies):
            log_prior = functional.log_prior(frequencies.require_instance_count())
            return functional.with_background(tau * log_prior, 0)

        self.register_derived("adjustment", frequencies, adjustment)

    def compute(self, logits, rois):
        return F.cross_entropy(logits + self.adjustment.to(logits.dtype), rois.gt_classes, reduction="none")
