"""Equalized Focal Loss (EFL)."""

from eql_d2.errors import InputError
from eql_d2.losses.base import SigmoidLoss
from eql_d2.losses.build import CLS_LOSS_REGISTRY
from eql_d2.losses.fused import SigmoidSum
from eql_d2.losses.statistics import GradientSums
from eql_d2.losses.terms import focal


@CLS_LOSS_REGISTRY.register()
class EqualizedFocalLoss(SigmoidLoss):
    """Focal loss that focuses the more on hard examples of a category, the more its negatives outweigh its positives.

    L = -(1 / R) sum_i sum_j alpha_t (gamma_j / gamma) (1 - p_t)^gamma_j log p_t
    gamma_j = gamma + scale (1 - g_j),   g_j = min(P_j / N_j, 1)

    p_t is p_ij = sigmoid(z_ij) and alpha_t is alpha where RoI i is of category j, else 1 - p_ij and 1 - alpha. The
    factor gamma_j / gamma gives back what the stronger focus takes from hard examples. From "Equalized Focal Loss for
    Dense Long-Tailed Object Detection" (Li et al., CVPR 2022, arXiv:2201.02593). It needs no class counts. The paper
    has it for one-stage detectors.

    P_j and N_j are sums of R |dL / dz_ij| of the positives and the negatives of category j over all steps so far: of
    the whole gradient, with alpha_t, the factor and the derivative of the focal term,

        dL / dz = alpha_t (gamma_j / gamma) (1 - p_t)^gamma_j (1 - p_t - gamma_j p_t log p_t) / R    of a negative,

    and of opposite sign for a positive. The step after a step uses them; before the first g_j is 1, which is focal
    loss.

    Background: no category's example, so all K targets are 0. K logits.

    State: P and N, float64 in checkpoints, summed over processes in each step.

    Deviations from the authors' code: divided by R, not by the number of foreground anchors; P and N follow from the
    logits, where theirs are taken from the gradient of the last layer by a hook, which mixed precision scales; log p_t
    through softplus, where theirs is infinite near |z| = 100; float64 sums.

    Args:
        num_classes: K.
        alpha: in (0, 1), weight of positives (default of the authors' code, as all).
        gamma: > 0, focus of a balanced category.
        scale: >= 0, what is added to gamma for a category without positives; 0 is focal loss.
        prior_prob: score every category starts with.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        alpha: float = 0.25,
        gamma: float = 2.0,
        scale: float = 8.0,
        prior_prob: float = 0.01,
    ):
        super().__init__(num_classes, prior_prob=prior_prob)
        if not 0 < alpha < 1:
            raise InputError(f"alpha must be in (0, 1), got {alpha}")
        if not 0 < gamma < float("inf"):
            raise InputError(f"gamma must be in (0, inf), got {gamma}")
        if not 0 <= scale < float("inf"):
            raise InputError(f"scale must be in [0, inf), got {scale}")
        self.alpha = alpha
        self.gamma = gamma
        self.scale = scale
        self.focal_gradients = GradientSums(num_classes)

    def category_gamma(self):
        """(K,) float64 gamma_j."""
        g = self.focal_gradients.ratio(initial=1.0).clamp(max=1)
        return self.gamma + self.scale * (1 - g)

    def compute(self, logits, rois):
        gamma = self.category_gamma()
        factor = gamma / self.gamma
        losses = SigmoidSum(
            focal,
            (gamma,),
            positive_weight=self.alpha * factor,
            negative_weight=(1 - self.alpha) * factor,
            negatives=rois.negatives,
            sums_by_category=self.training,
        )
        rows = losses.rows(logits, rois.gt_classes)
        if self.training:
            self.focal_gradients.add(*losses.pulls)
        return rows

    def without_rois(self):
        if self.training:
            self.focal_gradients.add_nothing()
