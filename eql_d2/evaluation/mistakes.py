"""Results that cannot mean what they say: ids, boxes and scores in another convention than the format's.

Each check returns one line with the cure, or None. They look at conventions, not at quality: a bad detector is none.
"""

import numpy as np

from eql_d2.evaluation.confusion import MISSED, Answers
from eql_d2.evaluation.lvis_metrics import Detections, GroundTruth
from eql_d2.evaluation.packed_masks import PackedMasks

FEW = 0.2  # share of boxes out of their image that a detector without clipping may have
MARGIN = 2  # px by which a box may leave its image through rounding
ENOUGH = 20  # objects that are judged


def mistakes(truth: GroundTruth, detections: Detections) -> list[str]:
    """What looks like a mistake of convention, one line each; ``detections`` as they came."""
    if not len(detections.score):
        return []
    found = [contiguous_ids(truth, detections), box_format(truth, detections), mask_size(truth, detections)]
    found.append(score_range(detections.score))
    return [line for line in found if line]


def contiguous_ids(truth: GroundTruth, detections: Detections) -> str | None:
    """Category ids are the dataset's, not a model's indices."""
    known, used = truth.category_ids, np.unique(detections.category_id)
    unknown = used[~np.isin(used, known)]
    for first in (0, 1):
        indices = used.min() >= first and used.max() < first + len(known)
        if indices and len(unknown) and known.min() >= first and (first == 0) == bool(used.min() == 0):
            return (
                f"the category ids look like a model's indices, from {first} on: {used.min()} to {used.max()}, and the "
                f"annotations do not list {_some(unknown)}; write the dataset's ids, {_cure(first)}"
            )
    return None


def indices_for_ids(category_ids: np.ndarray, answers: Answers) -> str | None:
    """The same where all ids are known, by what the detections on objects are called.

    Args:
        category_ids: (K,) ascending.
        answers: what the objects are taken for.
    """
    found = answers.predicted != MISSED
    objects, predicted = answers.category[found], answers.predicted[found]
    if found.sum() < ENOUGH:
        return None
    right = (predicted == objects).mean()
    for first in (0, 1):
        as_indices = (category_ids[predicted] - first == objects).mean()
        if as_indices > max(0.1, 3 * right):
            return (
                f"the category ids look like a model's indices, from {first} on: {100 * right:.0f} % of the objects "
                f"that are found have the right id, and {100 * as_indices:.0f} % the right index; write the dataset's "
                f"ids, {_cure(first)}"
            )
    return None


def _cure(first: int) -> str:
    return f"sorted(ids)[index{f' - {first}' if first else ''}]"


def box_format(truth: GroundTruth, detections: Detections) -> str | None:
    """Boxes are x, y, width, height in pixels."""
    box = detections.box
    if box is None or not len(truth.box):
        return None
    if box.max() <= 1.5 and truth.box.max() > 10:
        return (
            f"the boxes look normalised: no number is above {box.max():.3g}; "
            "multiply x and width by the image's width, y and height by its height"
        )
    size = _sizes(truth, detections)
    if size is None:
        return None
    if (box[:, 2:] >= box[:, :2]).all() and _outside(box[:, 2:], size).mean() <= 0.01:
        share = _outside(box[:, :2] + box[:, 2:], size).mean()
        if share > FEW:
            return (
                f"the boxes look like x0, y0, x1, y1: {100 * share:.0f} % of them end outside of their image if read "
                "as x, y, width, height; write x1 - x0 and y1 - y0 as width and height"
            )
    return None


def mask_size(truth: GroundTruth, detections: Detections) -> str | None:
    """Masks are of their image's size."""
    masks, size = detections.segmentation, _sizes(truth, detections)
    if size is None or not isinstance(masks, PackedMasks):
        return None
    other = np.flatnonzero((masks.size != size[:, ::-1]).any(axis=1) & np.isfinite(size).all(axis=1))
    if not len(other):
        return None
    height, width = masks.size[other[0]].tolist()
    return (
        f"{len(other)} of {len(masks)} masks are not of their image's size, as one of {height} x {width} of image "
        f"{detections.image_id[other[0]]} of {size[other[0], 1]:.0f} x {size[other[0], 0]:.0f}, and overlap nothing; "
        "write masks of the size that the annotations give"
    )


def score_range(score: np.ndarray) -> str | None:
    """AP needs an order only, calibration needs probabilities."""
    low, high = score.min(), score.max()
    if 0 <= low and high <= 1:
        return None
    looks = "percent" if low >= 0 and high <= 100 else "logits or something else than probabilities"
    return (
        f"the scores go from {low:.4g} to {high:.4g} and look like {looks}: AP is not touched, but calibration (ECE) "
        "means nothing; write scores in [0, 1]"
    )


def _sizes(truth: GroundTruth, detections: Detections) -> np.ndarray | None:
    """(N, 2) width and height of each detection's image, or None where the file does not tell all."""
    if None in truth.image_sizes or not len(truth.image_ids):
        return None
    size = np.array(truth.image_sizes, dtype=np.float64).reshape(-1, 2)[:, ::-1]
    known = np.isin(detections.image_id, truth.image_ids)
    index = np.searchsorted(truth.image_ids, np.where(known, detections.image_id, truth.image_ids[0]))
    size = size[index]
    size[~known] = np.inf
    return size


def _outside(corner: np.ndarray, size: np.ndarray) -> np.ndarray:
    return (corner > size + MARGIN).any(axis=1)


def _some(ids: np.ndarray) -> str:
    shown = ", ".join(map(str, ids[:5].tolist()))
    return shown if len(ids) <= 5 else f"{shown} and {len(ids) - 5} more"
