"""Boundary AP: masks by how well their outlines agree.

Mask IoU hardly sees the outline of a large object, since the inside is most of it. Boundary IoU looks only at the
pixels of a mask within d of its outline:

    boundary IoU(G, P) = |(G_d & G) & (P_d & P)| / |(G_d & G) | (P_d & P)|

and boundary AP is AP with min(mask IoU, boundary IoU) for mask IoU; d is 2 % of the image's diagonal. From "Boundary
IoU: Improving Object-Centric Image Segmentation Evaluation" (Cheng et al., CVPR 2021, arXiv:2103.16562). As in the
authors' code, d is rounded to whole pixels and at least 1, distance is the larger of that in x and in y, and the
image's border is an outline, too.
"""

import math
from typing import NamedTuple

import numpy as np
import pycocotools.mask as mask_utils

from eql_d2.evaluation.lvis_metrics import Matching, needed

DISTANCE = 0.02  # of the image's diagonal


class Boundary(NamedTuple):
    """The pixels of a mask near its outline, in the mask's bounding box."""

    low: np.ndarray  # (2,) column and row where the box starts
    high: np.ndarray  # (2,) where it ends, excluded
    pixels: np.ndarray  # (width, height) bool
    size: int  # how many pixels are set

    @classmethod
    def of(cls, rle: dict) -> "Boundary":
        """Of a mask as RLE."""
        distance = max(1, round(DISTANCE * math.hypot(*rle["size"])))
        box = mask_utils.toBbox(rle).astype(np.int64)
        low, high = box[:2], box[:2] + box[2:]
        mask = mask_utils.decode(rle).T[low[0] : high[0], low[1] : high[1]].astype(bool)
        pixels = mask & ~eroded(mask, distance)
        return cls(low, high, pixels, int(np.count_nonzero(pixels)))

    def iou(self, other: "Boundary") -> float:
        """In [0, 1]; 0 of two empty ones."""
        low, high = np.maximum(self.low, other.low), np.minimum(self.high, other.high)
        if (low >= high).any():
            return 0.0
        common = np.count_nonzero(self._window(low, high) & other._window(low, high))
        return common / (self.size + other.size - common) if common else 0.0

    def _window(self, low, high) -> np.ndarray:
        (x, y), (end_x, end_y) = low - self.low, high - self.low
        return self.pixels[x:end_x, y:end_y]


def eroded(mask: np.ndarray, distance: int) -> np.ndarray:
    """(w, h) bool -> (w, h) bool: pixels with no unset one within ``distance`` in x and y; all outside is unset."""
    for _ in range(2):  # along one axis, then along the other
        padded = np.zeros((len(mask) + 2 * distance, mask.shape[1]), dtype=bool)
        padded[distance : distance + len(mask)] = mask
        mask = all_of_next(padded, 2 * distance + 1).T
    return mask


def all_of_next(mask: np.ndarray, number: int) -> np.ndarray:
    """(n, m) bool -> (n - number + 1, m) bool: whether a pixel and those after it, ``number`` in all, are set."""
    reach = 1
    while reach < number:  # what is known of `reach` pixels says it of up to twice as many
        step = min(reach, number - reach)
        mask = mask[:-step] & mask[step:]
        reach += step
    return mask


def by_boundary(matching: Matching) -> Matching:
    """The matching of masks with min(mask IoU, boundary IoU) for mask IoU.

    Where mask IoU is below the lowest threshold the minimum is, too, so that only the pairs above it are looked at.
    """
    truth, kept = matching.truth, matching.kept
    segmentation = needed(matching.detections.segmentation)
    detection, gt, iou = matching.pairs
    overlap = iou.copy()
    objects: dict[int, Boundary] = {}  # of one image and category
    group = last = None
    for pair in np.lexsort((detection, kept.group[detection])):
        d, g = detection[pair], gt[pair]
        image = kept.group[d] // len(truth.category_ids)
        if kept.group[d] != group:
            objects, group, last = {}, kept.group[d], None
        if g not in objects:
            objects[g] = Boundary.of(truth.rle(truth.segmentation[g], image))
        if d != last:
            boundary, last = Boundary.of(truth.rle(segmentation[kept.index[d]], image)), d
        if not truth.crowd[g]:
            overlap[pair] = min(iou[pair], boundary.iou(objects[g]))
    return matching.with_overlaps(overlap)
