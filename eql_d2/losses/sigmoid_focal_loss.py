"""Sigmoid focal loss."""

from eql_d2.errors import InputError
from eql_d2.losses import fused
from eql_d2.losses.base import SigmoidLoss
from eql_d2.losses.build import CLS_LOSS_REGISTRY


@CLS_LOSS_REGISTRY.register()
class SigmoidFocalLoss(SigmoidLoss):
    """Sigmoid cross-entropy in which well-classified examples count less.

    L = -(1 / R) sum_i sum_j alpha_t (1 - p_t)^gamma log p_t                                             (Eq. 5)

    p_t is p_ij = sigmoid(z_ij) and alpha_t is alpha where RoI i is of category j, else 1 - p_ij and 1 - alpha.
    From "Focal Loss for Dense Object Detection" (Lin et al., ICCV 2017, arXiv:1708.02002).

    It was made for the anchors of a one-stage detector. A two-stage detector samples its RoIs, and there the authors of
    BAGS (arXiv:2006.10408) measured it on LVIS v0.5, Faster R-CNN R-50: 11.1 box AP, and 19.3 with only the classifier
    tuned, where softmax cross-entropy has 21.0. Do not expect it to help the tail by itself.

    Background: no category's example, so all K targets are 0, each with weight 1 - alpha.

    Deviation from the paper: divided by R, the sampled RoIs, as Detectron2 does in the ROI heads, not by the
    number of foreground ones.

    Args:
        num_classes: K.
        alpha: in (0, 1), weight of positives (default of the paper).
        gamma: >= 0, how fast the weight falls as an example becomes easy (default of the paper).
        prior_prob: score every category starts with (default of the paper).
    """

    compiled = False

    def __init__(
        self,
        num_classes: int,
        *,
        alpha: float = 0.25,
        gamma: float = 2.0,
        prior_prob: float = 0.01,
    ):
        super().__init__(num_classes, prior_prob=prior_prob)
        if not 0 < alpha < 1:
            raise InputError(f"alpha must be in (0, 1), got {alpha}")
        if not gamma >= 0:
            raise InputError(f"gamma must be >= 0, got {gamma}")
        self.alpha = alpha
        self.gamma = gamma

    def compute(self, logits, rois):
        loss = fused.sigmoid_focal(
            logits,
            rois.gt_classes,
            self.gamma,
            positive_weight=self.alpha / (1 - self.alpha),
            negatives=rois.negatives,
            compiled=self.compiled,
        )
        return (1 - self.alpha) * loss
