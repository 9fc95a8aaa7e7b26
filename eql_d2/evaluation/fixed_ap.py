"""Fixed AP: a limit on the detections of each category instead of those of each image.

LVIS keeps 300 detections of an image, and the categories compete for these places: a detector can gain AP by ranking
detections of different categories better, or lose it by scoring rare categories lower, with the ranking within each
category, which is all that AP is about, unchanged. Fixed AP is AP of the 10,000 highest scores of each category over
the whole dataset, however many are in one image. From "Evaluating Large-Vocabulary Object Detectors: The Devil is in
the Details" (Dave et al., 2021, arXiv:2102.01066). As in the authors' code the limit comes first, then what LVIS
leaves out.

The paper lowers the score threshold until every category has 10,000 detections; here it is the model's
(``MODEL.ROI_HEADS.SCORE_THRESH_TEST``), and a category with fewer detections above it is evaluated on those.
"""

import numpy as np

from eql_d2.evaluation.lvis_metrics import best_of_each
from eql_d2.evaluation.predictions import ImagePredictions

DETECTIONS_PER_CATEGORY = 10_000
PRUNE_ABOVE = 1_000_000  # detections, of all categories together


class BestOfEachCategory:
    """Keeps the highest scores of each category while predictions come in; of equal scores the first.

    Memory is bounded by twice what is kept in the end, or ``PRUNE_ABOVE`` where that is more: for LVIS, in theory, by
    24 million detections of 28 bytes and, if any, their masks.

    Args:
        limit: how many of each category.
    """

    def __init__(self, limit: int = DETECTIONS_PER_CATEGORY):
        self._limit = limit
        # (categories seen,) what a score must exceed: the last that is kept, where a category is full
        self._floor = np.zeros(0)
        self._images: list[ImagePredictions] = []
        self._pending, self._prune_at = 0, PRUNE_ABOVE

    def add(self, predictions: ImagePredictions) -> None:
        """The predictions of one image, not cut to any limit."""
        category = predictions.category_id
        missing = category.max(initial=-1) + 1 - len(self._floor)
        if missing > 0:
            self._floor = np.append(self._floor, np.full(missing, -np.inf))
        chosen = predictions.select(predictions.score > self._floor[category])
        self._images.append(chosen)
        self._pending += len(chosen.score)
        if self._pending > self._prune_at:
            self._prune()

    def images(self) -> list:
        """What is kept, as a list of ``ImagePredictions``, in the order they came in."""
        self._prune()
        return self._images

    def _prune(self) -> None:
        if not self._images:
            return
        category = np.concatenate([p.category_id for p in self._images])
        score = np.concatenate([p.score for p in self._images])
        keep = best_of_each(category, score, self._limit)
        full = np.bincount(category[keep], minlength=len(self._floor)) == self._limit
        lowest = np.full(len(self._floor), np.inf)
        np.minimum.at(lowest, category[keep], score[keep])
        self._floor = np.where(full, lowest, -np.inf)
        ends = np.cumsum([len(p.score) for p in self._images])
        self._images = [p.select(part) for p, part in zip(self._images, np.split(keep, ends[:-1]))]
        self._pending = int(keep.sum())
        self._prune_at = max(PRUNE_ABOVE, 2 * self._pending)


def best_of_all(parts: list, limit: int = DETECTIONS_PER_CATEGORY) -> list:
    """The images of several ``BestOfEachCategory``, one a process, cut to the limit once more."""
    together = BestOfEachCategory(limit)
    for images in parts:
        for predictions in images:
            together.add(predictions)
    return together.images()
