"""LVIS's 13 metrics, equal to the LVIS API's, by sparse array operations; and COCO's AP, equal to COCO's.

The LVIS API visits every image x category x area range in Python. Here only what exists is visited:
of an image's detections those whose category is known to be present or absent, of those the pairs
with a ground truth at IoU >= 0.5, and of precision only its values at true positives, between which
it cannot rise.

COCO's evaluation is that of LVIS with five differences, which a ``GroundTruth`` that is not federated has: every
category is known in every image; the limit on detections is per image and category; a crowd region takes any number of
detections, by the share of a detection that it covers, and is ignored; so is no other object for a flag of its own;
what has area 0 counts.

Shape legend:
I, K: images and categories, each in ascending order of id
G: ground-truth objects, ordered by (image, category)
N: detections, as they come
D: detections that count, ordered by (category, -score, image, place among the detections)
M: of those the candidates, which reach IoU >= 0.5 with an object of their image and category
P: pairs of a candidate and such an object
A, T, R: 4 area ranges, 10 IoU thresholds, 101 recall thresholds
group: an image and a category as one number, image * K + category
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TypeVar

import numpy as np
import pycocotools.mask as mask_utils

from eql_d2.data.json_files import read_json
from eql_d2.errors import InputError
from eql_d2.evaluation.packed_masks import PackedMasks

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
AREA_RANGES = {  # px^2, both ends included
    "all": (0, 1e10),
    "small": (0, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, 1e10),
}
AREA_LOW, AREA_HIGH = np.array(list(AREA_RANGES.values())).T  # (A,)
AREA_INDEX = {name: index for index, name in enumerate(AREA_RANGES)}
IOU_TYPES = ("bbox", "segm")
T = TypeVar("T")

MAX_DETS = 300  # per image, LVIS's official limit
COCO_MAX_DETS = 100  # per image and category, COCO's
# The LVIS API's names, in its order. It says "@300" whatever the limit was.
METRICS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"),
    *(f"AR{size}@{MAX_DETS}" for size in ("", "s", "m", "l")),
)

PAIRS_AT_ONCE = 1 << 18  # bounds the memory of box IoU
RLES_AT_ONCE = 255  # more in one call of pycocotools.mask.area overflow a uint8 on numpy 2


def evaluate_lvis(truth, detections, iou_type: str = "bbox", max_dets: int = MAX_DETS) -> "LVISCurves":
    """LVIS's evaluation of a whole dataset.

    As in the LVIS API: of each image the ``max_dets`` detections with the highest scores are kept,
    then those of area 0 and those whose category is neither annotated in the image nor in its
    ``neg_category_ids`` are dropped; unmatched detections of a category in
    ``not_exhaustive_category_ids`` are ignored. Equal scores keep the order of the images' ids, then
    the order they come in.

    Unlike the LVIS API: with masks a detection's area is its mask's even where results also hold
    boxes (Detectron2 strips the boxes to that end), no detections at all give precision and recall 0, and the
    inputs stay unchanged.

    Args:
        truth: a ``GroundTruth``, an LVIS annotation dict, or the path of its JSON file.
        detections: ``Detections``, or a list of dicts with image_id, category_id, score and bbox
            (x, y, w, h in pixels) or segmentation (RLE or polygons).
        iou_type: "bbox" or "segm".
        max_dets: per image, or per image and category if the truth is not federated; -1 is no limit.

    Raises:
        InputError: an unknown ``iou_type``, detections without what it needs or of an unknown image.
    """
    return match_lvis(truth, detections, iou_type, max_dets).curves


def match_lvis(truth, detections, iou_type: str = "bbox", max_dets: int = MAX_DETS) -> "Matching":
    """What :func:`evaluate_lvis` draws its curves from; arguments and errors as there."""
    if iou_type not in IOU_TYPES:
        raise InputError(f"iou_type must be one of {', '.join(IOU_TYPES)}, got {iou_type!r}")
    if not isinstance(truth, GroundTruth):
        truth = GroundTruth.load(truth)
    if not isinstance(detections, Detections):
        detections = Detections.from_results(detections, iou_type)
    kept = _keep(truth, detections, iou_type, max_dets)
    pairs = (_mask_pairs if iou_type == "segm" else _box_pairs)(truth, detections, kept)
    return Matching(truth, detections, iou_type, max_dets, kept, pairs, _match(truth, kept, *pairs))


@dataclass(frozen=True)
class GroundTruth:
    """An annotation file as arrays; unused objects (of area 0 in LVIS, of unlisted categories) are left out."""

    federated: bool  # LVIS's format, not COCO's
    image_ids: np.ndarray  # (I,)
    image_sizes: list  # I of (height, width), None where the file has none
    category_ids: np.ndarray  # (K,)
    frequency: np.ndarray  # (K,) letter r, c or f; "" where the file has none
    group: np.ndarray  # (G,) int64, ascending
    box: np.ndarray  # (G, 4) x, y, w, h in pixels
    ignored: np.ndarray  # (G, A) bool: by its own flag, or outside the area range
    crowd: np.ndarray  # (G,) bool
    scores_a_hit: np.ndarray  # (G,) bool
    segmentation: list  # G of RLE or polygons
    known: np.ndarray | None  # (*,) int64, groups known to be present or absent, ascending; None: all are
    not_exhaustive: np.ndarray  # (*,) int64, groups of which not all objects are annotated, ascending

    @classmethod
    def load(cls, source, federated: bool = True) -> "GroundTruth":
        """From an annotation dict, which stays unchanged, or the path of its JSON file.

        Args:
            source: the dict or path.
            federated: whether it is in LVIS's format; otherwise it is in COCO's.

        Raises:
            InputError: federated, but images without LVIS's fields; no such file, or another content.
        """
        if isinstance(source, (str, os.PathLike)):
            source = read_json(source, required=("images", "annotations", "categories"))
        image_of = {image["id"]: image for image in source["images"]}
        images = [image_of[image_id] for image_id in sorted(image_of)]
        categories = {category["id"]: category for category in source["categories"]}
        image_ids, category_ids = np.array([i["id"] for i in images]), np.array(sorted(categories))

        objects = [a for a in source["annotations"] if not federated or 0 < a["area"] < np.inf]
        group, listed = _groups(image_ids, category_ids, [(a["image_id"], a["category_id"]) for a in objects])
        order = np.flatnonzero(listed)
        order = order[np.argsort(group[order], kind="stable")]
        objects, group = [objects[i] for i in order], group[order]
        area = np.array([a["area"] for a in objects], dtype=np.float64)
        flag = "ignore" if federated else "iscrowd"
        flagged = np.array([bool(a.get(flag, 0)) for a in objects], dtype=bool)
        known, not_exhaustive = None, np.zeros(0, dtype=np.int64)
        if federated:
            absent = _listed_groups(images, image_ids, category_ids, "neg_category_ids")
            known = np.union1d(group, absent)
            not_exhaustive = _listed_groups(images, image_ids, category_ids, "not_exhaustive_category_ids")
        return cls(
            federated=federated,
            image_ids=image_ids,
            image_sizes=[(i["height"], i["width"]) if "height" in i else None for i in images],
            category_ids=category_ids,
            frequency=np.array([categories[c].get("frequency", "") for c in category_ids.tolist()]),
            group=group,
            box=np.array([a["bbox"] for a in objects], dtype=np.float64).reshape(-1, 4),
            ignored=flagged[:, None] | _outside(area),
            crowd=flagged & (not federated),
            # The LVIS API marks a detection as matched by the id of its object, so one with id 0 can
            # be taken but never found.
            scores_a_hit=np.array([a["id"] != 0 for a in objects], dtype=bool),
            segmentation=[a.get("segmentation") for a in objects],
            known=known,
            not_exhaustive=not_exhaustive,
        )

    @property
    def category(self) -> np.ndarray:
        """(G,) index in [0, K)."""
        return self.group % len(self.category_ids)

    def is_known(self, group: np.ndarray) -> np.ndarray:
        """(n,) groups -> (n,) bool: whether it was checked if the image has the category."""
        return np.ones(len(group), dtype=bool) if self.known is None else _find(self.known, group)[1]

    def num_objects(self) -> np.ndarray:
        """(K, A) objects that count."""
        number = np.zeros((len(self.category_ids), len(AREA_RANGES)), dtype=np.int64)
        np.add.at(number, self.category, ~self.ignored)
        return number

    def rle(self, segmentation, image: int) -> dict:
        """RLE of a segmentation in LVIS's format, in the image of that index."""
        if isinstance(segmentation, list):
            return mask_utils.merge(mask_utils.frPyObjects(segmentation, *self.image_sizes[image]))
        if isinstance(segmentation["counts"], list):
            return mask_utils.frPyObjects(segmentation, *self.image_sizes[image])
        return segmentation


@dataclass(frozen=True)
class Detections:
    """Detections of any number of images as arrays, in the dataset's ids."""

    image_id: np.ndarray  # (N,)
    category_id: np.ndarray  # (N,)
    score: np.ndarray  # (N,)
    box: np.ndarray | None = None  # (N, 4) x, y, w, h in pixels
    segmentation: Sequence | None = None  # N of RLE or polygons, made at each access if memory matters

    def select(self, keep: np.ndarray) -> "Detections":
        """Those that (N,) bool ``keep`` says."""
        if keep.all():
            return self
        masks = self.segmentation
        if isinstance(masks, PackedMasks):
            masks = masks.select(keep)
        elif masks is not None:
            masks = [masks[i] for i in np.flatnonzero(keep).tolist()]
        box = None if self.box is None else self.box[keep]
        return Detections(self.image_id[keep], self.category_id[keep], self.score[keep], box, masks)

    @classmethod
    def from_results(cls, results: list, iou_type: str) -> "Detections":
        """From dicts in the format of LVIS and COCO results; boxes are read for masks, too, where all have one.

        Raises:
            InputError: a result without box ("bbox") or mask ("segm").
        """
        boxes = [result.get("bbox") for result in results]
        masks = [result.get("segmentation") for result in results] if iou_type == "segm" else None
        if None in (boxes if masks is None else masks):
            field = "bbox" if masks is None else "segmentation"
            raise InputError(f"iou_type '{iou_type}' needs '{field}' in every detection, and some have none")
        return cls(
            image_id=np.array([result["image_id"] for result in results]),
            category_id=np.array([result["category_id"] for result in results]),
            score=np.array([result["score"] for result in results], dtype=np.float64),
            box=None if None in boxes else np.array(boxes, dtype=np.float64).reshape(len(results), 4),
            segmentation=masks,
        )


@dataclass(frozen=True)
class Matching:
    """The detections that count, and which objects they hit."""

    truth: GroundTruth
    detections: Detections  # as they came
    iou_type: str
    max_dets: int
    kept: "_Kept"
    pairs: tuple  # detection (P,), object (P,) and IoU (P,), as ``_box_pairs`` gives them
    matches: "_Matches"

    @cached_property
    def curves(self) -> "LVISCurves":
        return _accumulate(self.truth, self.kept, self.matches)

    def with_overlaps(self, overlap: np.ndarray) -> "Matching":
        """The matching by another measure of overlap, (P,), which must nowhere exceed the IoU."""
        detection, gt, _ = self.pairs
        close = overlap >= IOU_THRESHOLDS[0]
        pairs = detection[close], gt[close], overlap[close]
        return replace(self, pairs=pairs, matches=_match(self.truth, self.kept, *pairs))

    def outcomes(self) -> tuple:
        """Hits and false positives at IoU 0.5, of objects of all sizes, without the detections that are ignored.

        Returns:
            index (n,) in the detections as they came, category (n,) in [0, K), hit (n,) bool
        """
        hit, ignored = np.zeros((2, len(self.kept.group)), dtype=bool)
        hit[self.matches.detection] = self.matches.hit[:, AREA_INDEX["all"], 0]
        ignored[self.matches.detection] = self.matches.ignored[:, AREA_INDEX["all"], 0]
        counts = np.flatnonzero(hit | (self.kept.counted[:, AREA_INDEX["all"]] & ~ignored))
        return self.kept.index[counts], self.kept.category[counts], hit[counts]


@dataclass(frozen=True)
class LVISCurves:
    """Precision and recall of each category, -1 where it has no object; all in [0, 1] otherwise."""

    precision: np.ndarray  # (T, R, K, A), the highest at that recall or above
    recall: np.ndarray  # (T, K, A)
    category_ids: np.ndarray  # (K,)
    frequency: np.ndarray  # (K,) r, c, f or ""

    def metrics(self) -> dict:
        """The LVIS API's 13 metrics, ``METRICS``; -1 where there is no object."""
        values = [self.ap(), self.ap(iou=0.5), self.ap(iou=0.75)]
        values += [self.ap(area=area) for area in ("small", "medium", "large")]
        values += [self.ap(frequency=letter) for letter in "rcf"]
        values += [self.ar(area=area) for area in ("all", "small", "medium", "large")]
        return dict(zip(METRICS, values))

    def ap(self, *, iou: float | None = None, area: str = "all", frequency: str | None = None):
        """Average precision over categories with objects, or -1.

        Args:
            iou: one of ``IOU_THRESHOLDS``; None averages over them.
            area: a key of ``AREA_RANGES``.
            frequency: r, c or f; None is all categories.
        """
        thresholds = slice(None) if iou is None else np.isclose(IOU_THRESHOLDS, iou)
        precision = self.precision[thresholds, :, :, AREA_INDEX[area]]
        if frequency is not None:
            precision = precision[:, :, self.frequency == frequency]
        return _mean_of_valid(precision)

    def ar(self, *, area: str = "all"):
        """Average recall at the end of the curves, over categories with objects, or -1."""
        return _mean_of_valid(self.recall[:, :, AREA_INDEX[area]])

    def category_ap(self, *, iou: float | None = None, area: str = "all") -> np.ndarray:
        """(K,) average precision, or -1; arguments as of :meth:`ap`."""
        thresholds = slice(None) if iou is None else np.isclose(IOU_THRESHOLDS, iou)
        return self.precision[thresholds, :, :, AREA_INDEX[area]].mean(axis=(0, 1))

    def category_ar(self, *, area: str = "all") -> np.ndarray:
        """(K,) average recall, or -1."""
        return self.recall[:, :, AREA_INDEX[area]].mean(axis=0)


def _mean_of_valid(values: np.ndarray) -> float:
    values = values[values > -1]
    return float(values.mean()) if len(values) else -1.0


def _outside(area: np.ndarray) -> np.ndarray:
    """(n,) px^2 -> (n, A) bool."""
    return (area[:, None] < AREA_LOW) | (area[:, None] > AREA_HIGH)


def _find(ids: np.ndarray, wanted) -> tuple:
    """Where ascending ``ids`` holds each of ``wanted`` (n,): (n,) index and (n,) bool, False if nowhere."""
    wanted = np.asarray(wanted)
    if not len(ids) or not len(wanted):
        return np.zeros(len(wanted), dtype=np.int64), np.zeros(len(wanted), dtype=bool)
    index = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return index, ids[index] == wanted


def _groups(image_ids, category_ids, pairs: list) -> tuple:
    """Groups of (image id, category id): (n,) int64, and (n,) bool, False where one of the ids is unknown."""
    image, has_image = _find(image_ids, [image_id for image_id, _ in pairs])
    category, has_category = _find(category_ids, [category_id for _, category_id in pairs])
    return image * len(category_ids) + category, has_image & has_category


def _listed_groups(images: list, image_ids, category_ids, field: str) -> np.ndarray:
    """Groups that the images list in ``field``, ascending."""
    if any(field not in image for image in images):
        raise InputError(f"images without '{field}': this is not an LVIS annotation file")
    pairs = [(image["id"], category_id) for image in images for category_id in image[field]]
    group, listed = _groups(image_ids, category_ids, pairs)
    return np.unique(group[listed])


def positions(truth: GroundTruth, detections: Detections) -> tuple:
    """(N,) index of each detection's image, (N,) of its category, and (N,) bool, False for no such category."""
    image, has_image = _find(truth.image_ids, detections.image_id)
    if not has_image.all():
        missing = np.unique(detections.image_id[~has_image])
        raise InputError(
            f"detections of {len(missing)} images that the ground truth has not, such as {missing[0]}: "
            "evaluate on the dataset that was predicted"
        )
    return image, *_find(truth.category_ids, detections.category_id)


@dataclass(frozen=True)
class _Kept:
    """The D detections that count, in their order; (D,) each but for what is noted."""

    group: np.ndarray
    category: np.ndarray  # index in [0, K)
    counted: np.ndarray  # (D, A) bool: a false positive unless matched
    index: np.ndarray  # in the detections as they came


def _keep(truth: GroundTruth, detections: Detections, iou_type: str, max_dets: int) -> _Kept:
    """Limit, filter and order the detections."""
    score = detections.score
    image, category, has_category = positions(truth, detections)
    group = image * len(truth.category_ids) + category
    if truth.federated:
        keep = best_of_each(image, score, max_dets) & has_category & truth.is_known(group)
    else:
        keep = best_of_each(np.where(has_category, group, -1), score, max_dets) & has_category
    index = np.flatnonzero(keep)
    area = _mask_areas(truth, detections, index, image) if iou_type == "segm" else _box_areas(detections, index)
    if truth.federated:
        has_area = (area > 0) & (area < np.inf)
        index, area = index[has_area], area[has_area]
    order = np.lexsort((image[index], -score[index], category[index]))
    index, area = index[order], area[order]
    uncounted = _outside(area) | _find(truth.not_exhaustive, group[index])[1][:, None]
    return _Kept(group[index], category[index], ~uncounted, index)


def best_of_each(group: np.ndarray, score: np.ndarray, limit: int) -> np.ndarray:
    """(N,) bool: among the ``limit`` highest scores of its group, the first of equal ones; -1 is no limit."""
    if limit < 0 or np.unique(group, return_counts=True)[1].max(initial=0) <= limit:
        return np.ones(len(group), dtype=bool)
    order = np.lexsort((-score, group))
    best = np.empty(len(group), dtype=bool)
    best[order] = _place_in_run(group[order]) < limit
    return best


def _starts_of_runs(values: np.ndarray) -> np.ndarray:
    """Where each run of equal neighbours starts."""
    changes = np.ones(len(values), dtype=bool)
    changes[1:] = values[1:] != values[:-1]
    return np.flatnonzero(changes)


def _place_in_run(values: np.ndarray) -> np.ndarray:
    """(n,) place of each value in its run of equal neighbours, from 0."""
    starts = _starts_of_runs(values)
    lengths = np.diff(starts, append=len(values))
    return np.arange(len(values)) - np.repeat(starts, lengths)


def needed(field: T | None) -> T:
    """The boxes or masks of detections, where they are to be matched by them."""
    if field is None:
        raise InputError("these detections have no boxes, or no masks, to be matched by")
    return field


def _box_areas(detections: Detections, index) -> np.ndarray:
    size = needed(detections.box)[index, 2:].astype(np.float64)
    return size[:, 0] * size[:, 1]


def _mask_areas(truth: GroundTruth, detections: Detections, index, image) -> np.ndarray:
    area, segmentation = np.empty(len(index)), needed(detections.segmentation)
    for start in range(0, len(index), RLES_AT_ONCE):
        some = index[start : start + RLES_AT_ONCE]
        rles = [truth.rle(segmentation[i], image[i]) for i in some]
        area[start : start + len(some)] = mask_utils.area(rles)
    return area


def _box_pairs(truth: GroundTruth, detections: Detections, kept: _Kept):
    """Pairs of a detection and an object of its group with IoU >= 0.5.

    Returns:
        detection (P,), ascending; object (P,), ascending within a detection; IoU (P,)
    """
    first = np.searchsorted(truth.group, kept.group)
    count = np.searchsorted(truth.group, kept.group, side="right") - first
    return close_boxes(truth, needed(detections.box)[kept.index].astype(np.float64), first, count)


def close_boxes(truth: GroundTruth, box: np.ndarray, first: np.ndarray, count: np.ndarray):
    """As ``_box_pairs``, of each of the (n, 4) boxes with the (n,) ``count`` objects from its (n,) ``first`` on.

    IoU goes in the order of operations of ``pycocotools.mask.iou``, so it is equal to the bit. With a crowd region it
    is the share of the box that the region covers.
    """
    end = np.cumsum(count)  # of each detection's pairs
    box, objects = np.ascontiguousarray(box.T), np.ascontiguousarray(truth.box.T)  # columns are read faster
    parts = []
    start = 0
    while start < len(count):
        before = end[start] - count[start]
        stop = max(np.searchsorted(end, before + PAIRS_AT_ONCE, side="right"), start + 1)
        detection = np.repeat(np.arange(start, stop), count[start:stop])
        gt = np.repeat(first[start:stop], count[start:stop]) + _place_in_run(detection)
        width = _overlap(box, objects, 0, detection, gt)
        beside = width > 0
        detection, gt, width = detection[beside], gt[beside], width[beside]
        height = _overlap(box, objects, 1, detection, gt)
        shared = height > 0
        detection, gt, intersection = detection[shared], gt[shared], width[shared] * height[shared]
        area = box[2, detection] * box[3, detection]
        of_both = area + objects[2, gt] * objects[3, gt] - intersection
        iou = intersection / np.where(truth.crowd[gt], area, of_both)
        close = iou >= IOU_THRESHOLDS[0]
        parts.append((detection[close], gt[close], iou[close]))
        start = stop
    return _concatenate(parts)


def _overlap(a: np.ndarray, b: np.ndarray, axis: int, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """(n,) common width (axis 0) or height (1) of boxes i of ``a`` and j of ``b``, (4, *) x, y, w, h; < 0 if apart."""
    low_a, low_b = a[axis][i], b[axis][j]
    high_a, high_b = a[axis + 2][i] + low_a, b[axis + 2][j] + low_b
    return np.minimum(high_a, high_b) - np.maximum(low_a, low_b)


def _mask_pairs(truth: GroundTruth, detections: Detections, kept: _Kept):
    """As ``_box_pairs``."""
    by_group = np.argsort(kept.group, kind="stable")
    groups, starts = np.unique(kept.group[by_group], return_index=True)
    first = np.searchsorted(truth.group, groups)
    last = np.searchsorted(truth.group, groups, side="right")
    stops = np.append(starts[1:], len(by_group))
    parts, segmentation = [], needed(detections.segmentation)
    for i in np.flatnonzero(last > first):
        image = groups[i] // len(truth.category_ids)
        objects, members = range(first[i], last[i]), by_group[starts[i] : stops[i]]
        object_rles = [truth.rle(truth.segmentation[j], image) for j in objects]
        rles = [truth.rle(segmentation[j], image) for j in kept.index[members]]
        iou = mask_utils.iou(rles, object_rles, truth.crowd[objects].tolist())
        row, column = np.nonzero(iou >= IOU_THRESHOLDS[0])
        parts.append((members[row], column + first[i], iou[row, column]))
    detection, gt, iou = _concatenate(parts)
    order = np.argsort(detection, kind="stable")
    return detection[order], gt[order], iou[order]


def _concatenate(parts: list) -> tuple:
    """Parts of pairs -> detection, object, IoU."""
    empty = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))
    return tuple(np.concatenate(arrays) for arrays in zip(empty, *parts))


@dataclass(frozen=True)
class _Matches:
    """What became of the M candidates at each area range and IoU threshold."""

    detection: np.ndarray  # (M,) index in [0, D), ascending
    hit: np.ndarray  # (M, A, T) bool: matched to an object that counts
    ignored: np.ndarray  # (M, A, T) bool: matched to an object that is ignored


def _match(truth: GroundTruth, kept: _Kept, detection, gt, iou) -> _Matches:
    """Greedy matching: by falling score each candidate takes the best object that is left in its group.

    Best is one that is not ignored, then the highest IoU, then the last. Round r matches the
    candidate with the r-th highest score of every group at once: they cannot compete.
    """
    starts = _starts_of_runs(detection)
    candidates = detection[starts]
    turn = _turns(kept.group[candidates])
    candidate = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(detection)))
    order = np.lexsort((iou, candidate, turn[candidate]))  # stable: of equal IoU the last object is last
    candidate, gt, iou = candidate[order], gt[order], iou[order]
    counts = ~truth.ignored[gt]  # (P, A)
    place = _place_in_run(candidate)
    preference = place[:, None] + counts * (place.max(initial=0) + 1)

    shape = (len(AREA_RANGES), len(IOU_THRESHOLDS))
    taken = np.zeros((len(truth.group), *shape), dtype=bool)
    hit, ignored = np.zeros((2, len(candidates), *shape), dtype=bool)
    rounds = np.append(_starts_of_runs(turn[candidate]), len(candidate))
    for start, stop in pairwise(rounds):
        now, objects = slice(start, stop), gt[start:stop]
        firsts = _starts_of_runs(candidate[now])
        free = (iou[now, None] >= IOU_THRESHOLDS)[:, None] & ~taken[objects]  # (p, A, T)
        won = _most_preferred(free, preference[now], firsts)
        taken[objects] |= won & ~truth.crowd[objects, None, None]  # no object is there twice in a round
        scores = counts[now] & truth.scores_a_hit[objects, None]
        players = candidate[now][firsts]
        hit[players] = np.logical_or.reduceat(won & scores[:, :, None], firsts)
        ignored[players] = np.logical_or.reduceat(won & ~counts[now, :, None], firsts)
    return _Matches(candidates, hit, ignored)


def _turns(group: np.ndarray) -> np.ndarray:
    """(M,) how many candidates of the same group come before each."""
    order = np.argsort(group, kind="stable")
    turns = np.empty(len(group), dtype=np.int64)
    turns[order] = _place_in_run(group[order])
    return turns


def _most_preferred(free, preference, firsts) -> np.ndarray:
    """Of each candidate's free objects the one it prefers.

    Args:
        free: (p, A, T) bool, pairs of one candidate beside each other.
        preference: (p, A) integers >= 0, different within a candidate.
        firsts: where each candidate's pairs start.

    Returns:
        (p, A, T) bool
    """
    value = np.where(free, preference[:, :, None].astype(np.int32), -1)
    best = np.maximum.reduceat(value, firsts)
    return free & (value == np.repeat(best, np.diff(firsts, append=len(free)), axis=0))


def _accumulate(truth: GroundTruth, kept: _Kept, matches: _Matches) -> LVISCurves:
    """The curves of every category."""
    categories = np.arange(len(truth.category_ids) + 1)
    num_objects = truth.num_objects()
    shape = (len(IOU_THRESHOLDS), len(RECALL_THRESHOLDS), *num_objects.shape)
    precision = np.broadcast_to(np.where(num_objects > 0, 0.0, -1.0), shape).copy()
    recall = precision[:, 0].copy()

    first_detection = np.searchsorted(kept.category, categories)
    first_match = np.searchsorted(kept.category[matches.detection], categories)
    for k in np.flatnonzero(np.diff(first_match)):
        detections = slice(first_detection[k], first_detection[k + 1])
        these = slice(first_match[k], first_match[k + 1])
        at_hits = _precision_at_hits(
            kept.counted[detections],
            matches.detection[these] - first_detection[k],
            matches.hit[these],
            matches.ignored[these],
        )
        num_hits = matches.hit[these].sum(axis=0)  # (A, T)
        for a in np.flatnonzero(num_objects[k]):
            precision[:, :, k, a] = at_hits[_hits_needed(num_objects[k, a], len(at_hits)), a].T
            recall[:, k, a] = num_hits[a] / num_objects[k, a]
    return LVISCurves(precision, recall, truth.category_ids, truth.frequency)


def _precision_at_hits(counted, detection, hit, ignored) -> np.ndarray:
    """The highest precision at the h-th hit of a category or after it.

    Precision cannot rise between two hits, so nothing is lost by looking at hits alone.

    Args:
        counted: (d, A) of the category's detections, highest score first.
        detection: (m,) in [0, d), those that are candidates.
        hit, ignored: (m, A, T) of the candidates.

    Returns:
        (H + 1, A, T), H the most hits of any entry of (A, T); 0 where there are fewer and in the last row.
    """
    before = (np.cumsum(counted, axis=0, dtype=np.int32) - counted)[detection, :, None]
    excused = counted[detection, :, None] & (hit | ignored)  # would count, but is no false positive
    num_hits = np.cumsum(hit, axis=0, dtype=np.int32)
    false = before - (np.cumsum(excused, axis=0, dtype=np.int32) - excused)
    m, a, t = np.nonzero(hit)
    true = num_hits[m, a, t]
    precision = np.zeros((num_hits[-1].max() + 1, *hit.shape[1:]))
    # The LVIS API adds the epsilon last, and equality to the bit needs its order.
    precision[true - 1, a, t] = true / (false[m, a, t] + true + np.spacing(1))
    return np.maximum.accumulate(precision[::-1], axis=0)[::-1]


def _hits_needed(num_objects: int, limit: int) -> np.ndarray:
    """(R,) the row of ``_precision_at_hits`` for each recall threshold: how many hits reach it, less one.

    Recall 0 is reached by the first detection, and has the highest precision of all: row 0 too.
    """
    reached = np.arange(num_objects + 1) / num_objects
    hits = np.searchsorted(reached, RECALL_THRESHOLDS)
    return np.clip(hits - 1, 0, limit - 1)
