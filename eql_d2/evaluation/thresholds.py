"""The score at which to say that an object is there: for each category the one of the largest F1.

One score for all categories shows little of the tail, whose scores are low (detectron2#855, #4942). A detection is true
if it hits an object at IoU 0.5; precision, recall and F1 = 2 hits / (detections + objects) count those above a
threshold. What is chosen on some images looks better there than anywhere else: :func:`halves` are for that.

Shapes: n detections that count, K categories, I images.
"""

from dataclasses import dataclass

import numpy as np

from eql_d2.evaluation.lvis_metrics import AREA_INDEX, Matching

ALL = AREA_INDEX["all"]


def halves(num_images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Indices of two halves of the images, drawn at random; in order."""
    order = np.random.default_rng(seed).permutation(num_images)
    return np.sort(order[: num_images // 2]), np.sort(order[num_images // 2 :])


@dataclass(frozen=True)
class Outcomes:
    """Detections that count, and the objects that there are.

    Args:
        category, image, score, hit: (n,) of the detections.
        object_category, object_image: of the objects.
        num_classes: K.
    """

    category: np.ndarray
    image: np.ndarray
    score: np.ndarray
    hit: np.ndarray
    object_category: np.ndarray
    object_image: np.ndarray
    num_classes: int

    @classmethod
    def of(cls, matching: Matching) -> "Outcomes":
        truth, detections = matching.truth, matching.detections
        index, category, hit = matching.outcomes()
        image = np.searchsorted(truth.image_ids, detections.image_id[index])
        counts = ~truth.ignored[:, ALL]
        K = len(truth.category_ids)
        objects = truth.category[counts], truth.group[counts] // K
        return cls(category, image, detections.score[index], hit, *objects, K)

    def within(self, images: np.ndarray) -> "Outcomes":
        """Of some images, by index."""
        kept, objects = np.isin(self.image, images), np.isin(self.object_image, images)
        category, image, score, hit = (v[kept] for v in (self.category, self.image, self.score, self.hit))
        of_objects = self.object_category[objects], self.object_image[objects]
        return Outcomes(category, image, score, hit, *of_objects, self.num_classes)

    def thresholds(self) -> np.ndarray:
        """(K,) scores in [0, 1]; of equal F1 the highest.

        A category without a hit has nothing to choose by: it gets the threshold of all categories together.
        """
        together = _best_threshold(self.score, self.hit, len(self.object_category))
        objects = np.bincount(self.object_category, minlength=self.num_classes)
        chosen = np.full(self.num_classes, 1.0 if together is None else together)
        for category in np.unique(self.category[self.hit]):
            own = self.category == category
            chosen[category] = _best_threshold(self.score[own], self.hit[own], objects[category])
        return chosen

    def counts(self, thresholds: np.ndarray) -> np.ndarray:
        """(3, K) hits, detections and objects at thresholds (K,)."""
        above = self.score >= thresholds[self.category]
        parts = (self.category[above & self.hit], self.category[above], self.object_category)
        return np.stack([np.bincount(part, minlength=self.num_classes) for part in parts])


def _best_threshold(score: np.ndarray, hit: np.ndarray, num_objects: int) -> float | None:
    """The score of the largest F1, or None if nothing is hit."""
    if not hit.any():
        return None
    order = np.argsort(-score, kind="stable")
    f1 = 2 * np.cumsum(hit[order]) / (np.arange(1, len(order) + 1) + num_objects)
    last_of_equal = np.append(np.diff(score[order]) < 0, True)
    return float(score[order][np.argmax(np.where(last_of_equal, f1, -1))])


def precision_recall_f1(counts: np.ndarray) -> tuple[float, float, float]:
    """Means over categories with objects of (3, K) counts; without a detection precision is 0."""
    hits, detections, objects = counts[:, counts[2] > 0].astype(np.float64)
    if not len(objects):
        return np.nan, np.nan, np.nan
    precision = hits / np.maximum(detections, 1)
    return float(precision.mean()), float((hits / objects).mean()), float((2 * hits / (detections + objects)).mean())
