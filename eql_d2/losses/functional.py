"""Maths that several losses share. Shapes as in :mod:`eql_d2.losses.base`."""

from typing import Optional

import torch
from torch.nn import functional as F


def one_hot(gt_classes: torch.Tensor, num_classes: int, dtype: torch.dtype) -> torch.Tensor:
    """(R,) labels in [0, K] -> (R, K) targets y; a background row is all zero."""
    target = torch.zeros(len(gt_classes), num_classes + 1, dtype=dtype, device=gt_classes.device)
    return target.scatter_(1, gt_classes[:, None], 1)[:, :num_classes]


def sigmoid_cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, weight: Optional[torch.Tensor] = None
) -> torch.Tensor:
    """(1 / R) sum_ij w_ij BCE(z_ij, y_ij): summed over categories, averaged over RoIs.

    Args:
        logits, target: (R, K).
        weight: (R, K), bool or float, or None for 1.
    """
    if weight is not None:
        weight = weight.to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum")
    return loss / len(logits)
