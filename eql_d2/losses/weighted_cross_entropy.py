"""Softmax cross-entropy with a weight per class."""

import torch
from torch.nn import functional as F

from eql_d2.data.frequencies import Counts
from eql_d2.errors import InputError
from eql_d2.losses import functional
from eql_d2.losses.base import SoftmaxLoss
from eql_d2.losses.build import CLS_LOSS_REGISTRY


@CLS_LOSS_REGISTRY.register()
class WeightedCrossEntropy(SoftmaxLoss):
    """Each RoI counts as much as its label is rare: the oldest remedy, and the one to compare with.

    L = (1 / N) sum_i -w_{y_i} log softmax(z_i)_{y_i},    w_j ~ n_j^-power, of mean 1 over the categories

    N is R, or with ``normalize_by="weights"`` sum_i w_{y_i}, which is what ``torch.nn.CrossEntropyLoss`` divides by and
    which damps a batch of rare objects. n_j counts objects, since it is objects that RoIs are sampled for. A category
    without any has the weight of one object and no part in the mean.

    Background, column K, has no count: its weight is an argument. Mind that the mean is over categories, not over
    RoIs, most of which are of frequent categories: on LVIS v1 the mean object weighs 0.011 at power 1 and 0.10 at
    power 0.5, so against a background weight of 1 the foreground all but vanishes. The configs set it to the mean
    object's weight.

    Args:
        num_classes: K.
        frequencies: counts of the training set, K categories, with instance counts.
        power: >= 0; 1 is the inverse frequency, 0.5 its square root, 0 plain cross-entropy.
        background_weight: >= 0, the weight of background RoIs (default 1, as without weights).
        normalize_by: "rois" (default, as Detectron2 does) or "weights".
    """

    class_weight: torch.Tensor  # (K + 1,) float64

    def __init__(
        self,
        num_classes: int,
        *,
        frequencies: Counts,
        power: float = 1.0,
        background_weight: float = 1.0,
        normalize_by: str = "rois",
    ):
        super().__init__(num_classes)
        if not 0 <= power < float("inf"):
            raise InputError(f"power must be in [0, inf), got {power}")
        if not 0 <= background_weight < float("inf"):
            raise InputError(f"background_weight must be in [0, inf), got {background_weight}")
        if normalize_by not in ("rois", "weights"):
            raise InputError(f"normalize_by must be 'rois' or 'weights', got '{normalize_by}'")
        self.normalize_by = normalize_by

        def class_weight(frequencies):
            counts = frequencies.require_instance_count()
            weight = functional.mean_one(counts.double().clamp(min=1) ** -power, counts)
            return functional.with_background(weight, background_weight)

        self.register_derived("class_weight", frequencies, class_weight)

    def compute(self, logits, rois):
        weight = self.class_weight.to(logits.dtype)
        losses = F.cross_entropy(logits, rois.gt_classes, weight, reduction="none")
        if self.normalize_by == "rois":
            return losses
        # Background RoIs alone may weigh nothing: then the loss is zero.
        return losses * (len(logits) / weight[rois.gt_classes].sum().clamp(min=torch.finfo(weight.dtype).tiny))
