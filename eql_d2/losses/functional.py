"""Maths that several losses share. Shapes as in :mod:`eql_d2.losses.base`."""

import torch
from torch.nn import functional as F


def mean_one(weight: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Scale class weights so that their mean over the categories that occur is 1.

    A category without a sample is nobody's label, so its weight, often the largest, must not shrink the others'.

    Args:
        weight: (K,) float64.
        counts: (K,) training samples; at least one is not zero.
    """
    occurs = counts > 0
    if not occurs.any():
        raise ValueError(f"all {len(counts)} categories have a count of 0: nothing to weigh by")
    return weight * (occurs.sum() / (weight * occurs).sum())


def log_prior(counts: torch.Tensor) -> torch.Tensor:
    """(K,) float64 log n_j - log max n, in (-inf, 0]: the log of the class prior, 0 for the most frequent category.

    A category without a sample counts as one sample.
    """
    log_counts = counts.double().clamp(min=1).log()
    return log_counts - log_counts.max()


def with_background(values: torch.Tensor, background: float) -> torch.Tensor:
    """(K,) values of the categories -> (K + 1,), that of background last."""
    return torch.cat([values, values.new_full((1,), background)])


def focal(log_odds: torch.Tensor, gamma: float) -> torch.Tensor:
    """-(1 - p)^gamma log p of the probability p = sigmoid(log_odds), elementwise.

    Finite for any finite input, with its gradient; fvcore's ``sigmoid_focal_loss`` has a NaN gradient at
    +-1e4 for gamma below 1, and turns float64 into fp32.
    """
    wrong = (-log_odds).sigmoid().clamp(min=torch.finfo(log_odds.dtype).tiny)
    return wrong**gamma * F.softplus(-log_odds, threshold=50)


def softmax_log_odds(logits: torch.Tensor, gt_classes: torch.Tensor) -> torch.Tensor:
    """(R,) log(p_y / (1 - p_y)) of the labelled class y under softmax: z_y - log sum_{k != y} e^{z_k}."""
    gt_classes = gt_classes[:, None]
    others = logits.scatter(1, gt_classes, -torch.inf).logsumexp(dim=1)
    return logits.gather(1, gt_classes)[:, 0] - others
