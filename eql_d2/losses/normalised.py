"""The loss of detectors that normalise by their objects: one-stage detectors, and DETR and its kin."""

import torch

from eql_d2.errors import InputError
from eql_d2.losses.base import ClassificationLoss


def normalised_loss(
    loss: ClassificationLoss,
    logits: torch.Tensor,
    gt_classes: torch.Tensor,
    normalizer: float | torch.Tensor,
) -> torch.Tensor:
    """The sum of ``loss`` over all anchors or queries, divided by ``normalizer``.

    An RoI head divides by the number of its sampled RoIs. A dense detector divides by its foreground anchors (RetinaNet
    by their moving average), a set criterion by the objects of the batch (``num_boxes``).

    Beside the logits it needs memory for their gradient, and, where anchors are ignored, for a copy of the others.

    Args:
        loss: the classification loss.
        logits: (..., num_logits) float, such as (N, Q, num_logits) of N images with Q queries.
        gt_classes: (...) integers in [-1, K]: K is background ("no object"), -1 is ignored and never reaches the loss.
        normalizer: > 0, a number or a scalar tensor.

    Returns:
        Scalar, at least fp32. Without anchors it is zero, with a gradient path.

    Raises:
        InputError: shapes that do not belong together, a normalizer of 0 or below, or see ``ClassificationLoss``.
    """
    if logits.shape[:-1] != gt_classes.shape:
        raise InputError(
            f"normalised_loss takes one label for each row of logits: logits are {tuple(logits.shape)}, gt_classes "
            f"{tuple(gt_classes.shape)}"
        )
    if not isinstance(normalizer, torch.Tensor) and not normalizer > 0:
        raise InputError(f"normalizer must be above 0, got {normalizer}: take the number of objects, and at least 1")
    logits, gt_classes = logits.flatten(end_dim=-2), gt_classes.flatten()
    counts = gt_classes >= 0
    if not counts.all():
        logits, gt_classes = logits[counts], gt_classes[counts]
    return loss(logits, gt_classes, reduction="sum") / normalizer
