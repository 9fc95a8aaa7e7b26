"""Foreground classification balance loss (FCBL), of BACL."""

import torch
from torch.nn import functional as F

from eql_d2.errors import InputError
from eql_d2.losses import fused
from eql_d2.losses.background_sigmoid import BackgroundSigmoidLoss, with_known_background
from eql_d2.losses.build import CLS_LOSS_REGISTRY
from eql_d2.losses.statistics import as_it_is_now, check_counts_once, sum_over_processes, world_size

LEAST_CONFUSION = 1e-3  # of the authors' code: less counts as this


@CLS_LOSS_REGISTRY.register()
class ForegroundClassificationBalanceLoss(BackgroundSigmoidLoss):
    """Of two categories, the one that is more often taken for the other gets a margin over it.

    L = (1 / R) sum_i sum_{j <= K} w_ij BCE(z_ij + delta_ij, y_ij)

    On RoIs of category y

        delta_ij = alpha log(C_yj / C_jy)
        w_ij     = 1 where j is y or background, where p_ij >= p_iy, and where p_ij >= ``score_threshold``; else 0

    C_yj is the mean, over the RoIs of category y in all steps so far, of softmax(z)_j over the categories: how much y
    is taken for j. It counts as 1e-3 where it is less, so that categories that do not meet have no margin. On
    background RoIs delta is 0 and w is 1. From "Balanced Classification: A Unified Framework for Long-Tailed Object
    Detection" (BACL; Qi et al., IEEE TMM 2023, arXiv:2308.02213), whose other half, the feature hallucination module,
    is not part of a loss and is not here. It needs no class counts.

    Background, column K, is a class of its own. The score of category j, p_ij, is sigmoid(z_j) (1 - sigmoid(z_K)).

    The authors train it as a second stage: the classifier alone, from a trained baseline.

    State: the sums and numbers behind C, (K, K) and (K,) float64 in checkpoints (12 MB for LVIS), summed over processes
    in each step. A step uses the sums of the steps before it.

    Deviations from the authors' code: w from the first step, where theirs waits for an epoch; sums in float64; an RoI
    whose logits are not finite adds nothing.

    Args:
        num_classes: K.
        alpha: >= 0, strength of the margins (default of the authors' configs for LVIS v1); 0 is none.
        score_threshold: in [0, 1], score from which a category is pushed down by RoIs of another whatever that one's
            score is (default of the authors' code); at 0 all are.
        prior_prob: score every category, and background, starts with (ours: the authors start from a baseline).
    """

    confused: torch.Tensor  # (K, K) float64, row y: sum of softmax(z) over the RoIs of category y
    counts: torch.Tensor  # (K,) float64, their number

    def __init__(
        self, num_classes: int, *, alpha: float = 0.85, score_threshold: float = 0.7, prior_prob: float = 0.01
    ):
        super().__init__(num_classes, prior_prob=prior_prob)
        if not 0 <= alpha < float("inf"):
            raise InputError(f"alpha must be in [0, inf), got {alpha}")
        if not 0 <= score_threshold <= 1:
            raise InputError(f"score_threshold must be in [0, 1], got {score_threshold}")
        self.alpha = alpha
        self.score_threshold = score_threshold
        self.register_buffer("confused", torch.zeros(num_classes, num_classes, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.float64))

    def compute(self, logits, rois):
        with torch.no_grad():
            rows, own, foreground = self._objects(rois.gt_classes)
            objects = logits[rows]
            margin = as_it_is_now(F.pad(self.margin(own, logits.dtype) * foreground[:, None], (0, 1)))
            trained = torch.ones_like(logits, dtype=torch.bool)
            trained[rows] = self.competes(objects, own) | ~foreground[:, None]
            if rois.negatives is not None:
                trained &= with_known_background(rois.negatives)
            if self.training:
                self.count(objects, own, foreground)
        return fused.sigmoid_cross_entropy(logits.index_add(0, rows, margin), rois.gt_classes, negatives=trained)

    def _objects(self, gt_classes) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Which RoIs are foreground, their categories, and whether they are. A GPU would wait for the answer: there it
        is all RoIs, and background has the last category.
        """
        own, foreground = fused.own_entry(gt_classes, self.num_classes)
        if gt_classes.device.type == "cpu" and not fused.is_transformed():
            rows = foreground[:, 0].nonzero()[:, 0]
        else:
            rows = torch.arange(len(own), device=own.device)
        return rows, own[rows, 0], foreground[rows, 0]

    def margin(self, classes, dtype=torch.float64) -> torch.Tensor:
        """(R, K) alpha log(C_yj / C_jy) of (R,) categories y."""
        counts = self.counts.clamp(min=1)
        taken_for_others = self.confused.index_select(0, classes) / counts[classes, None]
        others_taken_for = self.confused.index_select(1, classes).T / counts
        ratio = taken_for_others.clamp_(min=LEAST_CONFUSION) / others_taken_for.clamp_(min=LEAST_CONFUSION)
        return self.alpha * ratio.to(dtype).log()

    def competes(self, logits, own) -> torch.Tensor:
        """(R, K + 1) bool, where w is 1 on RoIs of the (R,) categories ``own``."""
        categories, background = logits.split([self.num_classes, 1], dim=1)
        scores = categories.sigmoid() * (-background).sigmoid()
        competes = (categories >= categories.gather(1, own[:, None])) | (scores >= self.score_threshold)
        return F.pad(competes, (0, 1), value=True)

    @torch.no_grad()
    def count(self, logits, classes, foreground) -> None:
        """Add RoIs of all processes to the sums: (R, K + 1) logits, (R,) categories, and (R,) bool, which count."""
        check_counts_once(type(self).__name__)
        scores = logits[:, : self.num_classes].double().softmax(dim=1)
        counted = foreground & scores.isfinite().all(dim=1)
        alone = world_size() == 1
        confused, counts = (
            (self.confused, self.counts) if alone else map(torch.zeros_like, (self.confused, self.counts))
        )
        confused.index_add_(0, classes, torch.where(counted[:, None], scores, 0))
        counts.index_add_(0, classes, counted.double())
        if not alone:
            self.confused += sum_over_processes(confused)
            self.counts += sum_over_processes(counts)

    def without_rois(self):
        if self.training:
            none = self.counts.new_zeros(0)
            self.count(self.counts.new_zeros(0, self.num_logits), none.long(), none.bool())
