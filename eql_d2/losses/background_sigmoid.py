"""Base of the sigmoid losses that have a classifier of their own for background."""

import torch

from eql_d2.losses.base import ClassificationLoss, SigmoidLoss, at_least_fp32


class BackgroundSigmoidLoss(SigmoidLoss):
    """K + 1 binary classifiers: one a category, and column K, which tells background from objects of any category.

    Trained by cross-entropy, unless a subclass computes another loss. The score of category j is
    sigmoid(z_j) (1 - sigmoid(z_K)), that of background sigmoid(z_K).

    Plain classification has no background: there the loss and :meth:`probs` take (R, K) logits too.
    """

    @property
    def num_logits(self) -> int:
        return self.num_classes + 1

    def checked_width(self, logits) -> torch.Tensor:
        """(R, K) logits get a background of -inf: a score of 0, no loss and no gradient."""
        if logits.shape[1] != self.num_classes:
            return super().checked_width(logits)
        return torch.nn.functional.pad(logits, (0, 1), value=-torch.inf)

    def compute(self, logits, rois):
        return super().compute(logits, rois._replace(negatives=with_known_background(rois.negatives)))

    def plain(self) -> ClassificationLoss:
        return BackgroundSigmoidLoss(self.num_classes, prior_prob=self.prior_prob)

    def probs(self, logits) -> torch.Tensor:
        logits = at_least_fp32(self.checked_width(logits))
        categories, background = logits.split([self.num_classes, 1], dim=1)
        is_object = (-background).sigmoid()  # 1 - sigmoid(z_K) would lose digits
        return torch.cat([categories.sigmoid() * is_object, background.sigmoid()], dim=1)


def with_known_background(negatives):
    """(R, K) known categories -> (R, K + 1): whether a RoI is background is always known. None stays."""
    return None if negatives is None else torch.nn.functional.pad(negatives, (0, 1), value=True)
