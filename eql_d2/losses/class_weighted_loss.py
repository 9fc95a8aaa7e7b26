"""Cross-entropy or focal loss with class weights of one's own."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from eql_d2.data.json_files import read_json
from eql_d2.errors import InputError
from eql_d2.losses import functional, fused
from eql_d2.losses.base import ClassificationLoss, ScoredByAnother, SigmoidLoss, SoftmaxLoss
from eql_d2.losses.build import CLS_LOSS_REGISTRY


@CLS_LOSS_REGISTRY.register()
class ClassWeightedLoss(ScoredByAnother):
    """A number for each category, which you choose: the most frequent wish of all.

    Of the three bases, each as its framework's:

    - "softmax": L = (1 / R) sum_i -w_{y_i} log softmax(z_i)_{y_i}, as ``torch.nn.CrossEntropyLoss(weight=...)``;
    - "sigmoid": L = (1 / R) sum_i sum_j w_j^{y_ij} BCE(z_ij, y_ij), as ``BCEWithLogitsLoss(pos_weight=...)``: a weight
      counts where its category is the label, w_j n_j objects pull as n_j of weight 1 would;
    - "focal": L = (1 / R) sum_i sum_j a_ij (1 - p_t)^gamma (-log p_t), a_ij = w_j where y_ij = 1, else 1 - w_j: the
      alpha of focal loss for each category, "Focal Loss for Dense Object Detection" (Lin et al., ICCV 2017,
      arXiv:1708.02002).

    The weights are taken as they are, without normalising: with weights of mean 10 the loss is ten times as large.
    Deviations: divided by R, where PyTorch's mean is over the labels' weights (softmax) or over R K numbers (sigmoid).

    Args:
        num_classes: K.
        weights: K numbers >= 0, in the order of the category ids; of the focal base in [0, 1]. Empty: those of the
            file, or if there is none either, 1 for all (focal: 0.25, alpha's default), which is the base itself.
        weights_file: path of a JSON list of the same.
        base: "softmax" (default), "sigmoid" or "focal".
        background_weight: >= 0, of background RoIs, of the softmax base; unused by the others.
        gamma: >= 0, of the focal base (default 2.0, that of the paper); unused by the others.
        prior_prob: score every category starts with, of the sigmoid and focal bases (default 0.01, that of RetinaNet).
    """

    compiled: bool | None = False
    scoring: ClassificationLoss  # what the base decides besides the loss: width, prior and scores
    class_weight: torch.Tensor  # (K + 1,) float64 of the softmax base, else (K,)

    def __init__(
        self,
        num_classes: int,
        *,
        weights: Sequence[float] = (),
        weights_file: str = "",
        base: str = "softmax",
        background_weight: float = 1.0,
        gamma: float = 2.0,
        prior_prob: float = 0.01,
    ):
        super().__init__(num_classes)
        if base not in ("softmax", "sigmoid", "focal"):
            raise InputError(f"base must be 'softmax', 'sigmoid' or 'focal', got '{base}'")
        for name, value in (("background_weight", background_weight), ("gamma", gamma)):
            if not 0 <= value < float("inf"):
                raise InputError(f"{name} must be in [0, inf), got {value}")
        if len(weights) and weights_file:
            raise InputError(f"weights and weights_file ({weights_file}) are both given: keep one of them")
        self.base, self.gamma = base, gamma
        if base == "softmax":
            self.scoring = SoftmaxLoss(num_classes)
            self.compiled = None
        else:
            self.scoring = SigmoidLoss(num_classes, prior_prob=prior_prob)
            self.uses_negatives = True
        self.prior_prob = self.scoring.prior_prob
        given = read_json(weights_file) if weights_file else weights
        weight = self._checked(given, weights_file or "weights")
        if base == "softmax":
            weight = functional.with_background(weight, background_weight)
        self.register_buffer("class_weight", weight.to(torch.get_default_device()), persistent=False)

    def _checked(self, weights, source: str) -> torch.Tensor:
        """(K,) float64 on the CPU."""
        highest = 1.0 if self.base == "focal" else float("inf")
        with torch.device("cpu"):
            if isinstance(weights, (list, tuple)) and not weights:
                return torch.full((self.num_classes,), 0.25 if self.base == "focal" else 1.0, dtype=torch.float64)
            try:
                weight = torch.as_tensor(weights, dtype=torch.float64).cpu()
            except (TypeError, ValueError, RuntimeError) as error:
                raise InputError(f"{source} must be a list of {self.num_classes} numbers: {error}") from error
        in_range = weight.isfinite() & (weight >= 0) & (weight <= highest)
        if weight.shape != (self.num_classes,) or not in_range.all():
            raise InputError(
                f"{source} must hold a number in [0, {highest:g}{']' if self.base == 'focal' else ')'} for each of the "
                f"{self.num_classes} categories, got shape {tuple(weight.shape)}"
                f"{'' if in_range.all() else f', with {weight[~in_range][0].item():g}'}"
            )
        return weight

    def plain(self) -> ClassificationLoss:
        return self.scoring.plain()

    def compute(self, logits, rois):
        weight = self.class_weight.to(logits.dtype)
        if self.base == "softmax":
            return F.cross_entropy(logits, rois.gt_classes, weight, reduction="none")
        weights = {"positive_weight": weight, "negatives": rois.negatives, "compiled": self.compiled}
        if self.base == "sigmoid":
            return fused.sigmoid_cross_entropy(logits, rois.gt_classes, **weights)
        return fused.sigmoid_focal(logits, rois.gt_classes, self.gamma, negative_weight=1 - weight, **weights)
