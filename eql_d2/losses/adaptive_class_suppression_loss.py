"""Adaptive class suppression loss (ACSL)."""

import math

import torch

from eql_d2.data.frequencies import Counts
from eql_d2.errors import InputError
from eql_d2.losses import functional, fused
from eql_d2.losses.background_sigmoid import BackgroundSigmoidLoss, with_known_background
from eql_d2.losses.base import at_least_fp32
from eql_d2.losses.build import CLS_LOSS_REGISTRY


@CLS_LOSS_REGISTRY.register()
class AdaptiveClassSuppressionLoss(BackgroundSigmoidLoss):
    """An object pushes down only the categories that it is mistaken for.

    L = (1 / R) sum_i sum_{j <= K} w_ij BCE(z_ij, y_ij)

    On foreground RoIs w_ij is 1 for the RoI's own category and wherever sigmoid(z_ij) >= ``score_threshold``, column K
    included, and else 0. From "Adaptive Class Suppression Loss for Long-Tail Object Detection" (Wang et al., CVPR 2021,
    arXiv:2104.00885).

    Background, column K, is a class of its own: y_iK = 1 on background RoIs. These push rare, common and frequent
    categories down with chances of 1, 10 and 100 %, whatever their score; one draw a RoI and group decides. The paper's
    loss needs no statistics of the dataset; this part, which is of the authors' code, needs the groups.

    Scores are sigmoid(z), of all K + 1 columns. The authors train it as a second stage: the classifier alone, from
    a trained baseline.

    Deviations from the authors' code: each RoI is drawn by itself, where theirs takes exactly 1 % of the background
    RoIs, rounded down: none of fewer than 100.

    Args:
        num_classes: K.
        frequencies: counts of the training set, K categories, for their groups.
        score_threshold: in [0, 1], score from which a category is pushed down by other categories' RoIs (default
            of the authors' code); at 0 foreground RoIs push all.
        background_shares: three numbers in [0, 1], the shares of background RoIs that push rare, common and frequent
            categories down (default of the authors' code).
        prior_prob: score every column starts with (default of the authors' code).
    """

    background_shares: torch.Tensor  # (4,) in [0, 1], of each group
    group: torch.Tensor  # (K + 1,) int64: rare, common, frequent, background

    def __init__(
        self,
        num_classes: int,
        *,
        frequencies: Counts,
        score_threshold: float = 0.7,
        background_shares: tuple[float, float, float] = (0.01, 0.1, 1.0),
        prior_prob: float = 0.01,
    ):
        super().__init__(num_classes, prior_prob=prior_prob)
        if not 0 <= score_threshold <= 1:
            raise InputError(f"score_threshold must be in [0, 1], got {score_threshold}")
        if len(background_shares) != 3 or not all(0 <= share <= 1 for share in background_shares):
            raise InputError(
                f"background_shares are three numbers in [0, 1], of rare, common and frequent categories, got "
                f"{background_shares}"
            )
        self.score_threshold = score_threshold
        shares = torch.tensor([*background_shares, 1.0])  # column K is trained by every background RoI
        self.register_buffer("background_shares", shares, persistent=False)

        def group(frequencies):
            return torch.tensor(["rcf".index(letter) for letter in frequencies.groups] + [3])

        self.register_derived("group", frequencies, group)

    def probs(self, logits) -> torch.Tensor:
        """Sigmoid scores; of (R, K) logits with a zero background column."""
        return at_least_fp32(self.checked_width(logits)).sigmoid()

    def compute(self, logits, rois):
        trained = self.draw_trained(logits, rois.gt_classes, rois.generator)
        if rois.negatives is not None:
            trained &= with_known_background(rois.negatives)
        return fused.sigmoid_cross_entropy(logits, rois.gt_classes, negatives=trained)

    @torch.no_grad()
    def draw_trained(self, logits, gt_classes, generator=None) -> torch.Tensor:
        """(R, K + 1) bool, a new draw of where w is 1."""
        shares = self.background_shares
        draw = functional.rand(len(logits), len(shares), device=logits.device, generator=generator)
        by_background = (draw < shares).index_select(1, self.group)
        by_foreground = logits >= log_odds(self.score_threshold)
        is_background = (gt_classes == self.num_classes)[:, None]
        trained = torch.where(is_background, by_background, by_foreground)
        return trained.scatter_(1, gt_classes[:, None], True)


def log_odds(p: float) -> float:
    """The logit whose sigmoid is p, in [-inf, inf]."""
    if p in (0, 1):
        return math.copysign(math.inf, p - 0.5)
    return math.log(p / (1 - p))
