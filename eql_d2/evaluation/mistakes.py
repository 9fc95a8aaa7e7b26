"""Results that cannot mean what they say: ids, boxes and scores in another convention than the format's.

Each check returns one line with the cure, or None. They look at conventions, not at quality: a bad detector is none.
"""

from dataclasses import replace

import numpy as np

from eql_d2.evaluation.confusion import MISSED, Answers, answers
from eql_d2.evaluation.lvis_metrics import Detections, GroundTruth, needed
from eql_d2.evaluation.packed_masks import PackedMasks

FEW = 0.2  # share of boxes out of their image that a detector without clipping may have
MARGIN = 2  # px by which a box may leave its image through rounding
ENOUGH = 20  # objects that are judged
HARDLY = 0.05  # share of the objects that any detector should find
NO_CATEGORY = 0.02  # share of the objects found that any detector should call by their category
WITHOUT_DETECTION = 0.2  # share of the images with objects
REPEATED = 0.01  # share of the detections
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio


def mistakes(truth: GroundTruth, detections: Detections) -> list[str]:
    """What looks like a mistake of convention, one line each; ``detections`` as they came."""
    if not len(detections.score):
        return ["there is no detection: every AP is 0"]
    found = [contiguous_ids(truth, detections), box_format(truth, detections), mask_size(truth, detections)]
    found += [score_range(detections.score), empty_boxes(detections), repeated(detections)]
    found.append(images_without_detections(truth, detections))
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
    if low == high and len(score) >= ENOUGH:
        return f"all scores are {low:.4g}: AP comes of the order of scores, and there is none; write the detector's own"
    if 0 <= low and high <= 1:
        return None
    looks = "percent" if low >= 0 and high <= 100 else "logits or something else than probabilities"
    return (
        f"the scores go from {low:.4g} to {high:.4g} and look like {looks}: AP is not touched, but calibration (ECE) "
        "means nothing; write scores in [0, 1]"
    )


def empty_boxes(detections: Detections) -> str | None:
    """A width and a height are above 0."""
    box = detections.box
    negative = 0 if box is None else int((box[:, 2:] < 0).any(axis=1).sum())
    if not negative:
        return None
    return f"{negative} of {len(needed(box))} boxes have a width or height below 0, and overlap nothing"


def repeated(detections: Detections) -> str | None:
    """A detection is there once; the processes of a distributed test may each have seen the images that fill up."""
    if detections.box is None:
        return None
    columns = [detections.image_id, detections.category_id, detections.score, *detections.box.T]
    mixed = np.zeros(len(detections.score), dtype=np.uint64)
    for column in columns:  # one number for a detection; two have the same by chance in one of 10^6 files of 10^7
        mixed = (mixed ^ (mixed >> np.uint64(29)) ^ column.astype(np.float64).view(np.uint64)) * _ODD
    mixed.sort()
    again = int((mixed[1:] == mixed[:-1]).sum())
    if again <= REPEATED * len(mixed):
        return None
    return (
        f"{again} of {len(mixed)} detections are there already, with the same box, category and score, and count as "
        "false: write each image's detections once"
    )


def images_without_detections(truth: GroundTruth, detections: Detections) -> str | None:
    """The results are of all images that are evaluated."""
    with_objects = np.unique(truth.image_ids[truth.group // len(truth.category_ids)])
    without = int((~np.isin(with_objects, detections.image_id)).sum())
    if without <= WITHOUT_DETECTION * len(with_objects):
        return None
    return (
        f"{without} of {len(with_objects)} images with objects have no detection, and all their objects count as "
        "missed: if the detector was run on a part of the images, name these by --image-ids"
    )


def hardly_found(truth: GroundTruth, detections: Detections, judged: Answers, max_dets: int) -> str | None:
    """Boxes of hardly any object, or of no object of the category, whatever the detector is worth.

    Args:
        truth, detections: with boxes.
        judged: what the objects are taken for.
        max_dets: how many of an image they are looked for in; -1 is all.
    """
    objects, found = len(judged.predicted), judged.predicted != MISSED
    if objects < ENOUGH or len(detections.score) < objects / 2:
        return None
    if found.mean() < 0.3:
        box = needed(detections.box)
        others = {
            "centre x, centre y, width, height": np.concatenate([box[:, :2] - box[:, 2:] / 2, box[:, 2:]], axis=1),
            "y, x, height, width": box[:, [1, 0, 3, 2]],
        }
        for convention, other in others.items():
            share = (answers(truth, replace(detections, box=other), max_dets).predicted != MISSED).mean()
            if share > max(0.3, 3 * found.mean()):
                return (
                    f"the boxes look like {convention}: read so they overlap {100 * share:.0f} % of the objects, "
                    f"instead of {100 * found.mean():.0f} %; write x0, y0, width, height"
                )
    if found.mean() < HARDLY:
        return (
            f"only {100 * found.mean():.1f} % of the objects are overlapped by a detection of any category: are the "
            "boxes in pixels of the images as the annotations have them, and the image ids of this dataset?"
        )
    right = (judged.predicted == judged.category)[found].mean()
    if right < NO_CATEGORY and found.sum() >= ENOUGH:
        return (
            f"only {100 * right:.1f} % of the objects that are overlapped are called by their category: are the "
            "category ids of this dataset, and of its version?"
        )
    return None


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
