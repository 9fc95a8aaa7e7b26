"""Class-balanced loss (effective number of samples)."""

import torch
from torch.nn import functional as F

from eql_d2.data.frequencies import Counts
from eql_d2.errors import InputError
from eql_d2.losses import functional, fused
from eql_d2.losses.base import ClassificationLoss, ScoredByAnother, SigmoidLoss, SoftmaxLoss
from eql_d2.losses.build import CLS_LOSS_REGISTRY


@CLS_LOSS_REGISTRY.register()
class ClassBalancedLoss(ScoredByAnother):
    """The n-th sample of a category adds less than the one before: a category weighs by its effective number.

    L = (1 / R) sum_i w_{y_i} l(z_i, y_i),    w_j ~ (1 - beta) / (1 - beta^n_j), of mean 1 over the categories

    l is sigmoid cross-entropy, softmax cross-entropy or sigmoid focal loss; RoI i has one weight for all its columns,
    by its own label. From "Class-Balanced Loss Based on Effective Number of Samples" (Cui et al., CVPR 2019,
    arXiv:1901.05555).

    Background has no count: a background RoI weighs 1, and the mean is over the categories. n_j counts objects, as
    the paper's samples have one label each; a category without any has the weight of one object and no part in the
    mean. Mind that most objects are of frequent categories: on LVIS v1 the mean object weighs 0.11, 0.020 and 0.012
    at a beta of 0.99, 0.999 and 0.9999, so background gains on the foreground.

    Deviations from the authors' code: divided by R, also the focal form (theirs by the number of positives); weights
    through expm1 in float64, since 1 - beta^n loses digits. As in theirs, the focal form has no alpha, and the sigmoid
    and focal forms start with scores of 1 / K.

    Args:
        num_classes: K.
        frequencies: counts of the training set, K categories, with instance counts.
        beta: in [0, 1); the larger, the nearer to inverse frequency; 0 is the base loss. The authors choose among 0.9,
            0.99, 0.999 (default, that of the Bag of Tricks repository) and 0.9999.
        base: "sigmoid" (default), "softmax" or "focal".
        gamma: >= 0, of the focal base (default 0.5, the authors' smallest); unused by the others.
    """

    uses_negatives = True
    compiled: bool | None = False
    scoring: ClassificationLoss  # what the base decides besides the loss: width, prior and scores
    class_weight: torch.Tensor  # (K + 1,) float64

    def __init__(
        self,
        num_classes: int,
        *,
        frequencies: Counts,
        beta: float = 0.999,
        base: str = "sigmoid",
        gamma: float = 0.5,
    ):
        super().__init__(num_classes)
        if not 0 <= beta < 1:
            raise InputError(f"beta must be in [0, 1), got {beta}")
        if base not in ("sigmoid", "softmax", "focal"):
            raise InputError(f"base must be 'sigmoid', 'softmax' or 'focal', got '{base}'")
        if not 0 <= gamma < float("inf"):
            raise InputError(f"gamma must be in [0, inf), got {gamma}")
        self.base = base
        self.gamma = gamma
        if base == "softmax":
            self.scoring = SoftmaxLoss(num_classes)
            self.uses_negatives, self.compiled = False, None
        else:
            self.scoring = SigmoidLoss(num_classes, prior_prob=1 / max(2, num_classes))
        self.prior_prob = self.scoring.prior_prob

        def class_weight(frequencies):
            counts = frequencies.require_instance_count()
            weight = functional.mean_one(1 / effective_number(counts, beta), counts)
            return functional.with_background(weight, 1)

        self.register_derived("class_weight", frequencies, class_weight)

    def plain(self) -> ClassificationLoss:
        return self.scoring.plain()

    def compute(self, logits, rois):
        class_weight = self.class_weight.to(logits.dtype)
        if self.base == "softmax":
            return F.cross_entropy(logits, rois.gt_classes, class_weight, reduction="none")
        weights = {
            "row_weight": class_weight[rois.gt_classes],
            "negatives": rois.negatives,
            "compiled": self.compiled,
        }
        if self.base == "sigmoid":
            return fused.sigmoid_cross_entropy(logits, rois.gt_classes, **weights)
        return fused.sigmoid_focal(logits, rois.gt_classes, self.gamma, **weights)


def effective_number(counts: torch.Tensor, beta: float) -> torch.Tensor:
    """(K,) float64 (1 - beta^n) / (1 - beta), in [1, n]; a category without a sample counts as one sample."""
    log_beta = torch.tensor(beta, dtype=torch.float64).log()
    return -torch.expm1(counts.double().clamp(min=1) * log_beta) / (1 - beta)
