"""What objects are taken for: of rare ones, how many are found, and how many are called by a frequent category's name?

AP cannot tell: a rare object that is well located but gets a frequent category's name is a miss of the one and a false
positive of the other. Here each object of the evaluated set is judged by the detection with the highest score that
overlaps it (box IoU >= 0.5): it is right, has a wrong category, or there is none and the object is missed.

A detection that overlaps an object of its own category is about that one, not about its neighbours: it is no wrong
answer for the others. The detections are those within LVIS's limit per image, of all categories; COCO, whose limit is
one of each category, looks at all that the model keeps. LVIS verifies only some categories in each image, and an object
can have two names (a toy, a bear): a wrong answer whose category is not verified in the image may be right. Their share
is given, too.
"""

from dataclasses import dataclass

import numpy as np

from eql_d2.evaluation.lvis_metrics import (
    Detections,
    GroundTruth,
    best_of_each,
    close_boxes,
    needed,
    positions,
)

MISSED = -1


@dataclass(frozen=True)
class Answers:
    """The answer for each of the n objects that count."""

    category: np.ndarray  # (n,) of the object, in [0, K)
    predicted: np.ndarray  # (n,) of the detection, in [0, K), or MISSED
    unverified: np.ndarray  # (n,) bool: wrong, but nobody looked whether the image has this category, too

    def shares(self, members: np.ndarray, groups: dict) -> dict:
        """Of the objects of some categories.

        Args:
            members: (K,) bool, the categories.
            groups: letter -> (K,) bool.

        Returns:
            objects, and the shares of them, or None if there are none, that are right, wrong, missed, unverified;
            wrong_by_group.
        """
        mine = members[self.category]
        category, predicted = self.category[mine], self.predicted[mine]
        wrong = (predicted != MISSED) & (predicted != category)

        def share(which):
            return float(which.mean()) if len(which) else None

        return {
            "objects": len(category),
            "right": share(predicted == category),
            "wrong": share(wrong),
            "missed": share(predicted == MISSED),
            "wrong_by_group": {letter: share(wrong & of_group[predicted]) for letter, of_group in groups.items()},
            "unverified": share(self.unverified[mine]),
        }

    def pairs(self, limit: int) -> list:
        """The most frequent confusions: (category, predicted category, count)."""
        wrong = (self.predicted != MISSED) & (self.predicted != self.category)
        both = np.stack([self.category[wrong], self.predicted[wrong]], axis=1)
        pairs, count = np.unique(both, axis=0, return_counts=True)
        order = np.argsort(-count, kind="stable")[:limit]
        return [(*pairs[i].tolist(), int(count[i])) for i in order]


def answers(truth: GroundTruth, detections: Detections, max_dets: int) -> Answers:
    """Judge the objects of a dataset.

    Args:
        truth: the objects.
        detections: with boxes.
        max_dets: how many of each image are looked at, by highest score; -1 is all.
    """
    num_categories = len(truth.category_ids)
    image, category, listed = positions(truth, detections)
    chosen = np.flatnonzero(best_of_each(image, detections.score, max_dets) & listed)
    image, category, score = image[chosen], category[chosen], detections.score[chosen]
    first = np.searchsorted(truth.group, image * num_categories)
    count = np.searchsorted(truth.group, (image + 1) * num_categories) - first
    detection, gt, _ = close_boxes(truth, needed(detections.box)[chosen].astype(np.float64), first, count)

    of_own = category[detection] == truth.category[gt]
    has_own = np.zeros(len(chosen), dtype=bool)
    has_own[detection[of_own]] = True
    about = of_own | ~has_own[detection]
    detection, gt = detection[about], gt[about]
    order = np.lexsort((detection, -score[detection], gt))
    judged, first_pair = np.unique(gt[order], return_index=True)
    predicted = np.full(len(truth.group), MISSED)
    predicted[judged] = category[detection[order[first_pair]]]

    wrong = (predicted != MISSED) & (predicted != truth.category)
    predicted_group = truth.group - truth.category + predicted
    unverified = wrong & ~truth.is_known(predicted_group)
    counts = ~truth.ignored[:, 0]
    return Answers(truth.category[counts], predicted[counts], unverified[counts])
