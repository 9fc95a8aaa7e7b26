"""Whether scores are probabilities: of detections that score 0.8, are 80 % right?

Detections are parted by score into bins. In each, precision, the share that are true positives, is held against the
mean score; the expected calibration error is the mean of their distances, weighted by the detections in the bins:

    ECE = sum_m (n_m / n) |precision_m - score_m|

This is the detection ECE (D-ECE) of "Multivariate Confidence Calibration for Object Detection" (Küppers et al., CVPR
Workshops 2020, arXiv:2004.13546), by score alone. A true positive is what AP counts as one at IoU 0.5: each object is
hit once, by the highest score; what AP ignores is left out. In LVIS that is every detection of a category that is not
verified in the image, among which there are few hits: precision there is too high, for rare categories most, and
should be compared between models only.

Detections below ``MIN_SCORE`` are left out of ECE: LVIS keeps 300 of each image, nearly all of them below it, and these
many small numbers would hide all others.
"""

import numpy as np

MIN_SCORE = 0.05  # Detectron2's default for MODEL.ROI_HEADS.SCORE_THRESH_TEST: what someone would look at
NUM_BINS = 20


def calibration(score: np.ndarray, hit: np.ndarray) -> dict:
    """Reliability of the scores of n detections.

    Args:
        score: (n,) in [0, 1].
        hit: (n,) bool, the true positives.

    Returns:
        detections, precision, score (mean), ece, bias (score - precision, above 0 for over-confidence): of those of at
        least ``MIN_SCORE``, None where there is none; bins: of all detections, a list of low, high (excluded but for
        the last), detections, precision and score.
    """
    score = np.asarray(score, dtype=np.float64)
    edges = np.arange(NUM_BINS + 1) / NUM_BINS
    place = np.clip(np.searchsorted(edges, score, side="right") - 1, 0, NUM_BINS - 1)
    number, score_sum, hits = (
        np.bincount(place, weights=weights, minlength=NUM_BINS) for weights in (None, score, hit)
    )
    seen = edges[:-1] >= MIN_SCORE
    total = int(number[seen].sum())
    precision = mean_score = ece = bias = None
    if total:
        precision = float(hits[seen].sum() / total)
        mean_score = float(score_sum[seen].sum() / total)
        ece = float(np.abs(hits - score_sum)[seen].sum() / total)
        bias = mean_score - precision
    bins = [
        {
            "low": float(edges[m]),
            "high": float(edges[m + 1]),
            "detections": int(number[m]),
            "precision": float(hits[m] / number[m]) if number[m] else None,
            "score": float(score_sum[m] / number[m]) if number[m] else None,
        }
        for m in range(NUM_BINS)
    ]
    return {
        "detections": total,
        "precision": precision,
        "score": mean_score,
        "ece": ece,
        "bias": bias,
        "bins": bins,
    }
