"""Seesaw loss."""

import math

import torch
from torch.nn import functional as F

from eql_d2.errors import InputError
from eql_d2.losses import fused
from eql_d2.losses.base import ClassificationLoss, RoIs, at_least_fp32, reduced
from eql_d2.losses.build import CLS_LOSS_REGISTRY
from eql_d2.losses.statistics import as_it_is_now, check_counts_once, sum_over_processes


@CLS_LOSS_REGISTRY.register()
class SeesawLoss(ClassificationLoss):
    """An object is less of a negative for rarer categories, and more of one for those it is mistaken for.

    L = (1 / R) sum_{i foreground} -log softmax(z_i + log S_i)_{y_i}  +  (1 / R) sum_i CE(o_i, is RoI i background?)

    S_ik = M_ik C_ik                                          (1 for k = y)
    M_ik = min(1, N_k / N_y)^p                                mitigation: of rarer categories k
    C_ik = max(1, p_k / max(p_y, epsilon))^q                  compensation: where k scores higher than y, p = softmax(z)

    N_k counts the sampled RoIs of category k so far, those of the step included, and at least 1; S is a constant in the
    gradient. From "Seesaw Loss for Long-Tailed Instance Segmentation" (Wang et al., CVPR 2021, arXiv:2008.10032). It
    needs no class counts.

    The classifier has K + 2 outputs: z over the categories, and a pair o, object or background. Background RoIs train
    the pair only. The score of category j is softmax(z)_j softmax(o)_object; the scores and that of background sum to
    1. The authors use it with the normalised classifier (``MODEL.ROI_BOX_HEAD.CLS_NORM.TEMPERATURE`` 20).

    State: N, int64 in checkpoints, summed over processes before use.

    Deviations from the authors' code: theirs counts in each process on its own; no (K, K) matrix; the same value and
    gradient in logarithms, where scores that round to 0 do no harm.

    Plain classification has no background: there the loss and :meth:`probs` take (R, K) logits too.

    Args:
        num_classes: K.
        p: >= 0, strength of the mitigation (default of the paper and the authors' code, as all); 0 turns it off.
        q: >= 0, strength of the compensation; 0 turns it off.
        epsilon: in (0, 1], the least p_y that counts.
    """

    counts: torch.Tensor  # (K,) int64, N

    def __init__(self, num_classes: int, *, p: float = 0.8, q: float = 2.0, epsilon: float = 0.01):
        super().__init__(num_classes)
        for name, power in (("p", p), ("q", q)):
            if not 0 <= power < float("inf"):
                raise InputError(f"{name} must be in [0, inf), got {power}")
        if not 0 < epsilon <= 1:
            raise InputError(f"epsilon must be in (0, 1], got {epsilon}")
        self.p = p
        self.q = q
        self.epsilon = epsilon
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))

    @property
    def num_logits(self) -> int:
        return self.num_classes + 2

    def checked_width(self, logits) -> torch.Tensor:
        """(R, K) logits get a pair that says object for sure."""
        if logits.shape[1] != self.num_classes:
            return super().checked_width(logits)
        return F.pad(F.pad(logits, (0, 1)), (0, 1), value=-torch.inf)

    def probs(self, logits) -> torch.Tensor:
        logits = at_least_fp32(self.checked_width(logits))
        categories, pair = (z.softmax(dim=1) for z in logits.split([self.num_classes, 2], dim=1))
        return torch.cat([categories * pair[:, :1], pair[:, 1:]], dim=1)

    def compute(self, logits, rois):
        return sum(self._parts(logits, rois))

    def parts(self, logits, gt_classes, *, reduction: str = "mean") -> dict[str, torch.Tensor]:
        """The loss in its two parts, for a log of each; their sum is the loss, so do this in place of a call.

        Args:
            logits, gt_classes, reduction: as in a call.

        Returns:
            ``loss_cls_categories``, of foreground RoIs against each other, and ``loss_cls_objectness``.
        """
        logits, rois = self.checked(logits, RoIs(gt_classes), reduction)
        if len(logits) == 0:
            self.without_rois()
        parts = self._parts(logits, rois) if len(logits) else [logits.sum(dim=1)] * 2
        names = "loss_cls_categories", "loss_cls_objectness"
        return {name: reduced(part, reduction) for name, part in zip(names, parts)}

    def _parts(self, logits, rois) -> tuple[torch.Tensor, torch.Tensor]:
        """(R,) each: the loss of the categories, 0 for background, and of the pair."""
        if self.training:
            self.count(rois.gt_classes)
        categories, pair = logits.split([self.num_classes, 2], dim=1)
        objectness = F.cross_entropy(pair, (rois.gt_classes == self.num_classes).long(), reduction="none")
        if fused.is_transformed():
            return self._by_autograd(categories, rois.gt_classes), objectness
        of_categories = self._of_foreground if logits.device.type == "cpu" else self._of_all_rows
        return of_categories(categories, rois.gt_classes), objectness

    def _of_foreground(self, categories, gt_classes):
        """(R,) losses of the categories, 0 for background, by asking which RoIs are foreground: a GPU would wait."""
        foreground = (gt_classes < self.num_classes).nonzero()[:, 0]
        formula = self._formula(gt_classes[foreground, None])
        losses = fused.with_gradient_of(formula, categories.index_select(0, foreground))
        return losses.new_zeros(len(gt_classes)).index_add(0, foreground, losses)

    def _of_all_rows(self, categories, gt_classes):
        """The same, without that question."""
        own, foreground = fused.own_entry(gt_classes, self.num_classes)
        return fused.with_gradient_of(self._formula(own), categories) * foreground[:, 0]

    def without_rois(self):
        if self.training:
            self.count(self.counts.new_zeros(0))

    @torch.no_grad()
    def count(self, gt_classes) -> None:
        """Add the RoIs of all processes to N."""
        check_counts_once(type(self).__name__)
        counts = self.counts.new_zeros(self.num_classes + 1)
        counts.scatter_add_(0, gt_classes, torch.ones_like(gt_classes))
        self.counts += sum_over_processes(counts[:-1])

    def _seesawed(self, log_p, own):
        """z + log S of (R, K) log p, but for a constant in each row, which a softmax does not see:

        log p_k + p min(log N_k, log N_y) + q max(log p_k, max(log p_y, log epsilon)).
        """
        own_score = log_p.gather(1, own).clamp(min=math.log(self.epsilon))
        adjusted = torch.maximum(log_p, own_score).mul_(self.q).add_(log_p)
        log_count = as_it_is_now(self.counts).clamp(min=1).double().log().to(log_p.dtype)
        return adjusted.add_(torch.minimum(log_count, log_count[own]), alpha=self.p)

    def _by_autograd(self, z, gt_classes):
        """(R,) losses of the categories, 0 for background."""
        own, foreground = fused.own_entry(gt_classes, self.num_classes)
        log_p = z.detach().log_softmax(dim=1)
        adjusted = z + (self._seesawed(log_p, own) - log_p)
        return -(adjusted.log_softmax(dim=1).gather(1, own) * foreground)[:, 0]

    def _formula(self, own):
        """(z, with_gradient) -> the rows of objects of the (R, 1) categories ``own``, and their gradient; see
        :func:`fused.with_gradient_of`.
        """

        def formula(z, with_gradient):
            log_p = z.log_softmax(dim=1)
            log_p = torch.log_softmax(self._seesawed(log_p, own), dim=1, out=log_p)
            total = -log_p.gather(1, own)[:, 0]
            if not with_gradient:
                return total, None
            return total, log_p.exp_().scatter_add_(1, own, z.new_full(own.shape, -1))

        return formula
