"""Binary cross-entropy of a Gumbel activation."""

import math

import torch
from torch.nn import functional as F

from eql_d2.errors import InputError
from eql_d2.losses.base import SigmoidLoss, at_least_fp32
from eql_d2.losses.build import CLS_LOSS_REGISTRY
from eql_d2.losses.fused import own_entry

LOWEST, HIGHEST = -4.0, 10.0  # logits are kept within, as in the authors' code


@CLS_LOSS_REGISTRY.register()
class GumbelLoss(SigmoidLoss):
    """K binary classifiers whose score is the Gumbel distribution's function of the logit in the place of a sigmoid.

    p_ij = exp(-exp(-z_ij)),    L = (1 / R) sum_i sum_j BCE(p_ij, y_ij)

    Its left tail falls as exp(-exp(-z)): a category that is almost never there need not have a logit far below 0, and
    the gradient of its negatives, e^{-z} p / (1 - p), dies down faster than a sigmoid's, while that of positives,
    -e^{-z}, grows without bound where the score is low. From "Long-tailed Instance Segmentation using Gumbel Optimized
    Loss" (GOL; Alexandridis et al., ECCV 2022, arXiv:2207.10936); the authors train it with repeat factor sampling
    (RFS, ``DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler``), as the configs do. Their full GOL adds parts of
    DropLoss and others; this is its activation.

    Logits are clamped to [-4, 10], as in the authors' code, where scores are 2e-24 and 0.99995: beyond there is no
    gradient.

    Deviations from the authors' code: no clamp of the loss at 20, which would leave an object without a gradient where
    its score is lowest; K logits, without one for background.

    Args:
        num_classes: K.
        initial_bias: in [-4, 10], the bias that ``cls_score`` starts with (default -2, the authors'; a score of
            0.0006).
    """

    def __init__(self, num_classes: int, *, initial_bias: float = -2.0):
        if not LOWEST <= initial_bias <= HIGHEST:
            raise InputError(f"initial_bias must be in [{LOWEST:g}, {HIGHEST:g}], got {initial_bias}")
        # The predictor starts the bias at the log-odds of the prior.
        super().__init__(num_classes, prior_prob=1 / (1 + math.exp(-initial_bias)))

    def compute(self, logits, rois):
        pull = (-logits.clamp(LOWEST, HIGHEST)).exp()  # -log p
        of_negatives = -torch.log(-torch.expm1(-pull))
        column, foreground = own_entry(rois.gt_classes, self.num_classes)
        own = torch.where(foreground, pull.gather(1, column), of_negatives.gather(1, column))
        losses = of_negatives.scatter(1, column, own)
        return (losses if rois.negatives is None else losses * rois.negatives).sum(dim=1)

    def probs(self, logits):
        scores = (-(-at_least_fp32(logits).clamp(LOWEST, HIGHEST)).exp()).exp()
        return F.pad(scores, (0, 1))
