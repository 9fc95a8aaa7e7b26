"""Effective Class-Margin loss (ECM)."""

import torch

from eql_d2.data.frequencies import Counts
from eql_d2.errors import InputError
from eql_d2.losses.background_sigmoid import BackgroundSigmoidLoss, with_known_background
from eql_d2.losses.build import CLS_LOSS_REGISTRY
from eql_d2.losses.fused import SigmoidSum
from eql_d2.losses.terms import cross_entropy


@CLS_LOSS_REGISTRY.register()
class EffectiveClassMarginLoss(BackgroundSigmoidLoss):
    """Binary classifiers whose margins, wide for rare positives, bound the detector's mean average precision.

    L = (1 / R) sum_i sum_j m_j BCE(2 z_ij + (1 / 4) log(n+_j / n-_j), y_ij)
    m_j = a_j log(1 + 1 / a_j),   a_j = n-_j / n+_j

    n+_j counts images with category j, n-_j is the sum of all counts, that of background included, minus n+_j.
    sigmoid(2 z + (1 / 4) log(n+ / n-)) is the authors' w+ e^z / (w+ e^z + w- e^-z) with w+- ~ (n+-)^(1/4): a rare
    category starts low, and is hardly pushed down. From "Long-tail Detection with Effective Class-Margins" (Cho and
    Krähenbühl, ECCV 2022, arXiv:2301.09724).

    Background has a binary classifier of its own, column K; its count is ``background_ratio`` times the sum of the
    others'. The score of category j is sigmoid(z_j) (1 - sigmoid(z_K)), of z and not of 2 z, as in the authors' code.
    The authors use it with the normalised classifier (``MODEL.ROI_BOX_HEAD.CLS_NORM.TEMPERATURE`` 20), a bias that
    starts at 0, and a warm-up of 10,000 iterations.

    Deviations from the authors' code: m through log1p in float64, which in their float32 is off by up to 5.4 % on LVIS
    v1; no exponentials of +-z, which overflow; a category without an image counts as one.

    Args:
        num_classes: K.
        frequencies: counts of the training set, K categories.
        background_ratio: > 0, background examples for each image of a category (default of the authors' code: the ratio
            of background to foreground that they found in Mask R-CNN).
    """

    imbalance: torch.Tensor  # (K + 1,) float64, a

    def __init__(
        self,
        num_classes: int,
        *,
        frequencies: Counts,
        background_ratio: float = 6.3313,
    ):
        super().__init__(num_classes, prior_prob=0.5)
        if not 0 < background_ratio < float("inf"):
            raise InputError(f"background_ratio must be in (0, inf), got {background_ratio}")

        def imbalance(frequencies):
            counts = frequencies.image_count.double().clamp(min=1)
            counts = torch.cat([counts, background_ratio * counts.sum(dim=0, keepdim=True)])
            return (counts.sum() - counts) / counts

        self.register_derived("imbalance", frequencies, imbalance)

    def compute(self, logits, rois):
        weight = self.imbalance * self.imbalance.reciprocal().log1p()
        offset = -self.imbalance.log() / 4
        losses = SigmoidSum(
            cross_entropy,
            positive_weight=weight,
            negative_weight=weight,
            negatives=with_known_background(rois.negatives),
        )
        return losses.rows(2 * logits + offset.to(logits.dtype), rois.gt_classes)
