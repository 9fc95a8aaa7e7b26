"""Balanced softmax (BALMS), in its sigmoid form for detection."""

import torch

from eql_d2.data.frequencies import Counts
from eql_d2.losses import fused
from eql_d2.losses.base import SigmoidLoss
from eql_d2.losses.build import CLS_LOSS_REGISTRY


@CLS_LOSS_REGISTRY.register()
class BalancedSoftmaxLoss(SigmoidLoss):
    """The prior's log-odds are added to the logits of foreground RoIs, in training only: what they learn is free of it.

    L = (1 / R) sum_i sum_j BCE(z_ij + E(r_i) log(f_j / (1 - f_j)), y_ij)

    E(r_i) is 1 on foreground RoIs, and f_j is the share of annotated images with category j. Scores are sigmoid(z).
    From "Balanced Meta-Softmax for Long-Tailed Visual Recognition" (Ren et al., NeurIPS 2020, arXiv:2007.10740); this
    is the form in which the authors' code trains detectors. The paper's softmax form, CE(z + log n), is
    :class:`LogitAdjustedLoss` at tau 1.

    Background RoIs have the logits as they are: full negatives for all. A category without any images counts as of one,
    and a category of all images as of all but half an image, so that the log-odds are finite.

    The authors train it as a second stage: the classifier alone, from a baseline trained by sigmoid cross-entropy.
    Their meta-learned sampler, the M of BALMS, is not here.

    Deviations from the authors' code: any dataset instead of LVIS v0.5; logits are not edited in place; the last
    category gets its box loss.

    Args:
        num_classes: K.
        frequencies: counts of the training set, K categories, with the number of images.
        prior_prob: score every category starts with (default of the authors' code).
    """

    adjustment: torch.Tensor  # (K,) float64

    def __init__(self, num_classes: int, *, frequencies: Counts, prior_prob: float = 0.001):
        super().__init__(num_classes, prior_prob=prior_prob)

        def adjustment(frequencies):
            share, image = frequencies.frequency, 1 / frequencies.num_images
            return share.clamp(image, 1 - image / 2).logit()

        self.register_derived("adjustment", frequencies, adjustment)

    def compute(self, logits, rois):
        foreground = (rois.gt_classes < self.num_classes).to(logits.dtype)
        adjusted = torch.addcmul(logits, foreground[:, None], self.adjustment.to(logits.dtype))
        return fused.sigmoid_cross_entropy(adjusted, rois.gt_classes, negatives=rois.negatives)
