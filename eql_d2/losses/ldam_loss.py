"""Label-distribution-aware margin loss (LDAM), with deferred re-weighting (DRW)."""

import torch

from eql_d2.data.frequencies import Counts
from eql_d2.errors import InputError
from eql_d2.losses import functional
from eql_d2.losses.base import ClassificationLoss, SoftmaxLoss, at_least_fp32
from eql_d2.losses.build import CLS_LOSS_REGISTRY
from eql_d2.losses.class_balanced_loss import effective_number
from eql_d2.losses.iterations import CountsSteps


class ScaledSoftmaxLoss(SoftmaxLoss):
    """Cross-entropy and scores of softmax(scale z).

    Args:
        num_classes: K.
        scale: > 0.
    """

    def __init__(self, num_classes: int, *, scale: float):
        super().__init__(num_classes)
        if not 0 < scale < float("inf"):
            raise InputError(f"scale must be in (0, inf), got {scale}")
        self.scale = scale

    def compute(self, logits, rois):
        return super().compute(self.scale * logits, rois)

    def plain(self) -> ClassificationLoss:
        return ScaledSoftmaxLoss(self.num_classes, scale=self.scale)

    def probs(self, logits) -> torch.Tensor:
        return super().probs(self.scale * at_least_fp32(logits))


@CLS_LOSS_REGISTRY.register()
class LDAMLoss(CountsSteps, ScaledSoftmaxLoss):
    """A rare category must win by a margin; late in the training its RoIs may also weigh more.

    L = -(1 / R) sum_i w_{y_i} log softmax(scale (z_i - m_{y_i} e_{y_i}))_{y_i}
    m_j = max_margin (min n / n_j)^(1/4)

    with e_y the unit vector of the label, so the margin is taken from the label's logit only. w is 1, and from
    iteration ``reweight_iter`` on w_j ~ (1 - beta) / (1 - beta^n_j) (deferred re-weighting, DRW). From "Learning
    Imbalanced Datasets with Label-Distribution-Aware Margin Loss" (Cao et al., NeurIPS 2019, arXiv:1906.07413).

    A margin needs logits of a known size: z is the cosine between the classifier's input and the category's weights,
    ``MODEL.ROI_BOX_HEAD.CLS_NORM`` with ``TEMPERATURE`` 1 and ``BIAS`` False, since the scale is applied here and a
    bias would undo the margin. With the plain classifier the loss trains too, but a large enough weight makes any
    margin small. Scores are softmax(scale z).

    Background, column K, has no count: no margin, and weight 1. n_j counts objects, as the paper's samples have one
    label each; a category without any counts as one.

    Deviations from the authors' code: divided by R, also with weights, where torch's cross-entropy divides by the sum
    of the weights in the batch; so w is scaled to a mean of 1 over the objects, the same in expectation, and foreground
    keeps its share against background when DRW begins.

    Args:
        num_classes: K.
        frequencies: counts of the training set, K categories, with instance counts.
        max_margin: >= 0, margin of the rarest category, in units of z (default of the authors' code, as all).
        scale: > 0, what the cosine is multiplied by.
        reweight_iter: >= 0, iterations before DRW begins. Default None: never; the
            authors' scripts use 80 % of the training.
        beta: in [0, 1), of DRW; the larger, the nearer to inverse frequency.
    """

    margin: torch.Tensor  # (K + 1,) float64
    class_weight: torch.Tensor  # (K + 1,) float64

    def __init__(
        self,
        num_classes: int,
        *,
        frequencies: Counts,
        max_margin: float = 0.5,
        scale: float = 30.0,
        reweight_iter: int | None = None,
        beta: float = 0.9999,
    ):
        super().__init__(num_classes, scale=scale)
        if not 0 <= max_margin < float("inf"):
            raise InputError(f"max_margin must be in [0, inf), got {max_margin}")
        if reweight_iter is not None and reweight_iter < 0:
            raise InputError(f"reweight_iter must be None or >= 0, got {reweight_iter}")
        if not 0 <= beta < 1:
            raise InputError(f"beta must be in [0, 1), got {beta}")
        self.reweight_iter = reweight_iter

        def margin(frequencies):
            counts = frequencies.require_instance_count().double().clamp(min=1)
            margin = max_margin * (counts.min() / counts) ** 0.25
            return functional.with_background(margin, 0)

        def class_weight(frequencies):
            counts = frequencies.require_instance_count().double()
            weight = 1 / effective_number(counts, beta)
            of_mean_object = (counts * weight).sum() / counts.sum().clamp(min=1)
            return functional.with_background(weight / of_mean_object, 1)

        self.register_derived("margin", frequencies, margin)
        self.register_derived("class_weight", frequencies, class_weight)

    def compute(self, logits, rois):
        margin = self.margin.to(logits.dtype)[rois.gt_classes]
        logits = logits.scatter_add(1, rois.gt_classes[:, None], -margin[:, None])
        loss = super().compute(logits, rois)
        if self.reweight_iter is not None:
            weight = self.class_weight.to(loss.dtype)[rois.gt_classes]
            loss = loss * torch.where(self.reached(self.reweight_iter, "LDAMLoss re-weights"), weight, 1)
        return loss
