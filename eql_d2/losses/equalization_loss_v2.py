"""Equalization Loss v2 (EQLv2)."""

import math

import torch

from eql_d2.errors import InputError
from eql_d2.losses import functional
from eql_d2.losses.background_sigmoid import BackgroundSigmoidLoss, with_known_background
from eql_d2.losses.build import CLS_LOSS_REGISTRY
from eql_d2.losses.fused import SigmoidSum
from eql_d2.losses.statistics import GradientSums
from eql_d2.losses.terms import cross_entropy


@CLS_LOSS_REGISTRY.register()
class EqualizationLossV2(BackgroundSigmoidLoss):
    """A category whose negatives have outweighed its positives so far gets strong positives and weak negatives.

    L = (1 / R) sum_i sum_j (w+_j y_ij + w-_j (1 - y_ij)) BCE(z_ij, y_ij)

    w-_j = 1 / (1 + exp(-gamma (g_j - mu))),   w+_j = 1 + alpha (1 - w-_j),   g_j = P_j / N_j

    P_j and N_j are sums, over all steps so far, of the weighted gradients w+_j |p - y| of the positives and w-_j |p -
    y| of the negatives of category j. From "Equalization Loss v2: A New Gradient Balance Approach for Long-tailed
    Object Detection" (Tan et al., CVPR 2021, arXiv:2012.08548). It needs no class counts. A step uses the sums of the
    steps before it, so the first is unweighted; a category that has had negatives only has g = 0: w- = 6.8e-5, w+ = 5.

    Background has a binary classifier of its own, column K, which every RoI trains and which the authors call the
    category-agnostic task: weight 1, no sums. The score of category j is sigmoid(z_j) (1 - sigmoid(z_K)).

    State: P and N, float64 in checkpoints, summed over processes in each step.

    Deviations from the authors' code: P and N are float64, and saved from the start; they are also right on one GPU,
    where theirs fails; a step with logits that are not finite adds nothing.

    Args:
        num_classes: K.
        gamma: > 0, how sharply w- falls around mu (default of the paper and the authors' code, as all).
        mu: the g at which w- is 1/2.
        alpha: >= 0, what is added to the weight of positives where w- is 0.
        prior_prob: score every category, and background, starts with.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        gamma: float = 12.0,
        mu: float = 0.8,
        alpha: float = 4.0,
        prior_prob: float = 0.001,
    ):
        super().__init__(num_classes, prior_prob=prior_prob)
        if not 0 < gamma < float("inf"):
            raise InputError(f"gamma must be in (0, inf), got {gamma}")
        if not math.isfinite(mu):
            raise InputError(f"mu must be finite, got {mu}")
        if not 0 <= alpha < float("inf"):
            raise InputError(f"alpha must be in [0, inf), got {alpha}")
        self.gamma = gamma
        self.mu = mu
        self.alpha = alpha
        self.gradients = GradientSums(num_classes)

    def weights(self):
        """(K + 1,) float64 w+ and w-, both 1 for background."""
        g = self.gradients.ratio(initial=100.0)  # of the authors' code: w- = w+ = 1
        negative = torch.sigmoid(self.gamma * (g - self.mu))
        negative = functional.with_background(negative, 1)
        return 1 + self.alpha * (1 - negative), negative

    def compute(self, logits, rois):
        positive_weight, negative_weight = self.weights()
        losses = SigmoidSum(
            cross_entropy,
            positive_weight=positive_weight,
            negative_weight=negative_weight,
            negatives=with_known_background(rois.negatives),
            sums_by_category=self.training,
        )
        rows = losses.rows(logits, rois.gt_classes)
        if self.training:
            self.gradients.add(*(sums[:-1] for sums in losses.pulls))
        return rows

    def without_rois(self):
        if self.training:
            self.gradients.add_nothing()
