"""Is a difference real? Confidence intervals of AP by the bootstrap: the images are drawn anew, with replacement.

An image that is drawn twice counts twice: its objects, hits and false positives have a weight, the image's
multiplicity. Detections are matched to objects image by image, so that matching is done once, and of each drawing only
precision and recall are summed anew, in array operations. Two detectors get the same drawings, so that the interval of
their difference is paired. From "An Introduction to the Bootstrap" (Efron and Tibshirani, 1993), chapter 13, with
one change. AP of few objects is too high: precision at a recall is the highest one at that recall or above, and of few
objects that is a lucky one. A drawing has fewer different objects than the set, and a higher AP; its quantiles may not
even hold the set's own AP. So they are moved by the set's AP less the drawings' mean. The interval is then one for the
mean AP of sets of this size, not for AP of an endless one, which is lower.

What is drawn is images alone. A category whose objects are all in one image is absent from 37 % of the drawings, and
its AP hardly changes in the others: its own uncertainty cannot be seen. docs/evaluation.md says what share of
intervals holds the true AP.

Shape legend:
I, K: images and categories
D: detections that count, of categories that are hit at all
H: hits, each at each IoU threshold where it is one, ordered by (IoU threshold, category, score)
S: curves, one of each IoU threshold and category
"""

from collections.abc import Sequence

import numpy as np

from eql_d2.evaluation.lvis_metrics import AREA_INDEX, IOU_THRESHOLDS, RECALL_THRESHOLDS, Matching

ALL = AREA_INDEX["all"]


class WeightedAP:
    """AP of every category, for any weights of the images.

    With weights of 1 it is the AP of the matching's own curves, but for rounding. Among detections of one category with
    equal scores those of the same image follow each other, as if the image were there so many times.
    """

    def __init__(self, matching: Matching):
        truth, kept, matches = matching.truth, matching.kept, matching.matches
        K, T = len(truth.category_ids), len(IOU_THRESHOLDS)
        self.num_images, self._num_categories, self._num_curves = len(truth.image_ids), K, T * K
        counts = ~truth.ignored[:, ALL]
        self._object_image, self._object_category = truth.group[counts] // K, truth.category[counts]

        hit, ignored = matches.hit[:, ALL], matches.ignored[:, ALL]  # (M, T)
        counted = kept.counted[:, ALL]
        self._false_image = kept.group[counted] // K  # (D,), a false positive unless excused
        detection_place = np.cumsum(counted) - counted  # (all,) how many that count come before
        category_place = np.append(detection_place, counted.sum())[np.searchsorted(kept.category, np.arange(K + 1))]

        # Entries are hits and what is excused (counted but no false positive), in the order of the curves.
        threshold, candidate = np.nonzero((hit | ignored).T)
        detection = matches.detection[candidate]
        curve = threshold * K + kept.category[detection]
        is_hit = hit[candidate, threshold]
        order = np.lexsort((detection, curve))
        detection, curve, is_hit = detection[order], curve[order], is_hit[order]
        self._entry_image = kept.group[detection] // K
        self._entry_excused = counted[detection]
        self._entry_hit = is_hit
        hits = np.flatnonzero(is_hit)
        starts = np.searchsorted(curve, np.arange(T * K + 1))
        self._hits, self._curve = hits, curve[hits]
        self._first_entry = starts[self._curve]  # (H,) of each hit's curve
        self._before = detection_place[detection[hits]]  # (H,)
        self._first_before = category_place[self._curve % K]
        self._new_curve = np.diff(self._curve, prepend=-1) > 0
        self._offset = 2.0 * (self._num_curves - self._curve)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """(I,) whole numbers >= 0 -> (K,) AP in [0, 1], -1 of a category without object."""
        num_objects = np.bincount(
            self._object_category, weights=weights[self._object_image], minlength=self._num_categories
        )
        valid = num_objects > 0
        area = np.bincount(self._curve, weights=self._steps(weights, num_objects), minlength=self._num_curves)
        ap = area.reshape(-1, self._num_categories).mean(axis=0) / len(RECALL_THRESHOLDS)
        return np.where(valid, ap, -1.0)

    def _steps(self, weights, num_objects) -> np.ndarray:
        """(H,) what each hit adds to the sum of precision over the recall thresholds of its curve."""
        false = _sums_before(weights[self._false_image])
        entry_weight = weights[self._entry_image]
        excused = _sums_before(entry_weight * self._entry_excused)
        hit = _sums_before(entry_weight * self._entry_hit)
        false_before = false[self._before] - false[self._first_before]
        excused_before = excused[self._hits] - excused[self._first_entry]
        true = hit[self._hits + 1] - hit[self._first_entry]
        # Within the copies of one hit precision rises, so the last stands for all.
        precision = true / (false_before - excused_before + true + np.spacing(1))
        # The highest precision from here on, in all curves at once: earlier curves lie above later ones.
        best = np.maximum.accumulate((precision + self._offset)[::-1])[::-1] - self._offset
        return best * self._thresholds(true, num_objects[self._curve % self._num_categories])

    def _thresholds(self, true, num_objects) -> np.ndarray:
        """(H,) how many recall thresholds each hit is the first to reach."""
        recall = np.divide(true, num_objects, out=np.zeros(len(true)), where=num_objects > 0)
        reached = np.where(true > 0, np.searchsorted(RECALL_THRESHOLDS, recall, side="right"), 0)
        before = np.where(self._new_curve, 0, np.append(0, reached[:-1]))
        return reached - before


def _sums_before(values: np.ndarray) -> np.ndarray:
    """(n,) -> (n + 1,) sum of what comes before each place."""
    sums = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=sums[1:])
    return sums


def bootstrap(
    detectors: Sequence[WeightedAP],
    groups: dict,
    num_drawings: int,
    seed: int = 0,
    progress=iter,
    images: np.ndarray | None = None,
) -> dict:
    """AP in every drawing of the images.

    Args:
        detectors: of the same dataset.
        groups: name -> (K,) bool, the categories whose mean AP is asked for.
        num_drawings: how many; 1000 is usual for 95 %.
        seed: of the drawings.
        progress: wraps the range of drawings, as tqdm does.
        images: indices of the images to draw from; None: all.

    Returns:
        name of a group -> (num_drawings, detectors), nan where a drawing has no object of the group.
    """
    rng = np.random.default_rng(seed)
    count = detectors[0].num_images
    images = np.arange(count) if images is None else images
    drawn: dict = {name: np.full((num_drawings, len(detectors)), np.nan) for name in groups}
    for row in progress(range(num_drawings)):
        weights = np.bincount(images[rng.integers(0, len(images), len(images))], minlength=count)
        for column, detector in enumerate(detectors):
            for name, value in group_means(detector(weights), groups).items():
                drawn[name][row, column] = value
    return drawn


def group_means(ap: np.ndarray, groups: dict) -> dict:
    """(K,) AP -> group -> mean of its categories that have objects, or nan."""
    valid = ap > -1
    return {name: float(ap[valid & of].mean()) if (valid & of).any() else np.nan for name, of in groups.items()}


def interval(value: float, drawn: np.ndarray, level: float = 0.95) -> tuple[float, float] | None:
    """The central interval of drawings, moved so that their mean is ``value``; None if none is a number."""
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2]) - known.mean() + value
    return float(low), float(high)
