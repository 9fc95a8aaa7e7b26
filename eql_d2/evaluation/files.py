"""Evaluation of results files against an annotation file, of any detector, without torch and Detectron2."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pycocotools.mask as mask_utils

from eql_d2.data.annotations import read_truth
from eql_d2.data.json_files import parsed
from eql_d2.errors import InputError
from eql_d2.evaluation.categories import Categories
from eql_d2.evaluation.intervals import WeightedAP, bootstrap, group_means, interval
from eql_d2.evaluation.lvis_metrics import (
    COCO_MAX_DETS,
    IOU_TYPES,
    MAX_DETS,
    RLES_AT_ONCE,
    Detections,
    GroundTruth,
    Matching,
    best_of_each,
    match_lvis,
    needed,
)
from eql_d2.evaluation.mistakes import contiguous_ids, hardly_found, indices_for_ids, mistakes
from eql_d2.evaluation.named_ids import category_names, image_names, numbers_of
from eql_d2.evaluation.packed_masks import PackedMasks
from eql_d2.evaluation.results_file import read_results
from eql_d2.evaluation.tail_results import TailResults, in_percent
from eql_d2.evaluation.training_counts import shipped_counts, training_counts

logger = logging.getLogger(__name__)

FORMATS = ("lvis", "coco")
DETECTIONS_PER_CATEGORY = 10_000  # of fixed AP
UNKNOWN_SHARE = 0.1  # of detections; above, the results are of another dataset
FEDERATED_FIELDS = ("neg_category_ids", "not_exhaustive_category_ids")
NEEDED = ("id", "image_id", "category_id", "bbox", "area")
SIZES = ("small", "medium", "large")


@dataclass(frozen=True)
class Dataset:
    """What results are evaluated on."""

    path: str
    truth: GroundTruth
    categories: Categories
    left_out_images: np.ndarray  # ids that the file lists, and that are not evaluated
    entries: dict  # of the file: all its images, its categories

    @classmethod
    def load(cls, path, format: str | None = None, image_ids: str | None = None, train: str | None = None) -> "Dataset":
        """
        Args:
            path: an annotation file.
            format: "lvis" or "coco"; None is what the file is: LVIS's if all its images have LVIS's fields.
            image_ids: a file with the ids of the images to evaluate: JSON, or a text with one a line, or another
                annotation file. None is all.
            train: the training set's annotation file, or a file of `eql-d2 counts`, for r, c and f of these and AP by
                training images. None is LVIS's own training set for LVIS's categories, else none.
        """
        _refuse_results(path)
        read = read_truth(path)
        for note in read.notes:
            logger.warning(note)
        data = dict(read)
        _check(path, data)
        entries = {"images": data["images"], "categories": data["categories"]}
        all_ids = np.array([image["id"] for image in data["images"]])
        if image_ids is not None:
            _keep_images(path, data, image_ids)
        if format is None:
            federated = _is_federated(path, data["images"])
        else:
            federated = format == "lvis"
        try:
            truth = GroundTruth.load(data, federated)
        except OverflowError as error:
            raise InputError(f"{path}: an area, box or id is too large a number: {error}") from error
        names = {category["id"]: category.get("name") for category in data["categories"]}
        categories = _categories(truth, names, train)
        return cls(str(path), truth, categories, np.setdiff1d(all_ids, truth.image_ids), entries)

    def numbered(self, path, detections: Detections) -> tuple[Detections, list[str]]:
        """With the file's ids for texts that mean them, and a line on each kind of name."""
        names = {"image_id": (image_names, "images"), "category_id": (category_names, "categories")}
        notes, changed = [], {}
        for field_name, (of_entries, part) in names.items():
            texts = getattr(detections, field_name)
            if texts.dtype.kind == "U":
                ids = np.array([entry["id"] for entry in self.entries[part]])
                numbers = numbers_of(texts, ids, of_entries(self.entries[part]))
                changed[field_name] = numbers
                if len(texts) and texts[0] != str(numbers[0]) and numbers[0] in ids:
                    what = "image by its file" if part == "images" else "category by its name"
                    notes.append(f"{path} calls each {what}: {str(texts[0])!r} is `{field_name}` {numbers[0]}")
        return replace(detections, **changed), notes

    @property
    def format(self) -> str:
        return "lvis" if self.truth.federated else "coco"

    @property
    def max_dets(self) -> int:
        """The format's own limit."""
        return MAX_DETS if self.truth.federated else COCO_MAX_DETS


@dataclass(frozen=True)
class Evaluated:
    """One results file on a dataset."""

    path: str
    dataset: Dataset
    analysis: TailResults
    notes: list[str]  # what was left out, and what looks like a mistake
    unknown: dict  # of ids: how many detections

    @classmethod
    def load(
        cls,
        path,
        dataset: Dataset,
        iou_type: str = "bbox",
        max_dets: int | None = None,
        fixed_ap: bool = False,
        boundary: bool = False,
        unknown_share: float = UNKNOWN_SHARE,
    ) -> "Evaluated":
        """
        Args:
            path: a results file.
            dataset: what to evaluate on.
            iou_type: "bbox" or "segm".
            max_dets: per image (LVIS), per image and category (COCO); None is the format's own, -1 no limit.
            fixed_ap: add AP of the best 10,000 detections of each category.
            boundary: add boundary AP, for masks.
            unknown_share: of detections with an id that the dataset does not list; more is an error.
        """
        if iou_type not in IOU_TYPES:
            raise InputError(f"iou_type must be one of {', '.join(IOU_TYPES)}, got {iou_type!r}")
        if boundary and iou_type != "segm":
            raise InputError("boundary AP is of masks: evaluate iou_type 'segm' (--iou-type segm)")
        limit = dataset.max_dets if max_dets is None else max_dets
        if limit != -1 and limit < 1:
            raise InputError(f"max_dets must be a number of detections, or -1 for all; got {limit} (--max-dets)")
        detections, notes = dataset.numbered(path, read_results(path, iou_type))
        notes += mistakes(dataset.truth, detections)
        detections, unknown = _known(path, dataset, detections, notes, unknown_share)
        if detections.box is None:
            detections = _with_boxes(dataset.truth, detections)
        matching = match_lvis(dataset.truth, detections, iou_type, limit)
        most = None
        if fixed_ap:
            most = detections.select(best_of_each(detections.category_id, detections.score, DETECTIONS_PER_CATEGORY))
        analysis = TailResults(matching, dataset.categories, most, boundary)
        if not unknown["category_id"]:
            line = indices_for_ids(dataset.truth.category_ids, analysis.answers)
            line = line or hardly_found(dataset.truth, detections, analysis.answers, limit)
            notes += [line] if line else []
        return cls(str(path), dataset, analysis, notes, unknown)

    @property
    def matching(self) -> Matching:
        return self.analysis.matching

    @cached_property
    def metrics(self) -> dict:
        """Name -> percent, nan where there is no object: the format's own, then the analysis's."""
        own = self._lvis() if self.dataset.truth.federated else self._coco()
        own = {name: in_percent(None if value < 0 else value) for name, value in own.items()}
        analysed = self.analysis.scalars()
        return own | {name: value for name, value in analysed.items() if not own.get(name, np.nan) == own.get(name)}

    def _lvis(self) -> dict:
        """LVIS's 13 metrics, which its API names by the limit, too."""
        metrics = self.matching.curves.metrics()
        return {name.replace(f"@{MAX_DETS}", f"@{self._limit}"): value for name, value in metrics.items()}

    @property
    def _limit(self) -> str:
        limit = self.matching.max_dets
        return "all" if limit == -1 else str(limit)

    def _coco(self) -> dict:
        """COCO's 12 metrics, under the names of its summary."""
        curves = self.matching.curves
        values = {"AP": curves.ap(), "AP50": curves.ap(iou=0.5), "AP75": curves.ap(iou=0.75)}
        values |= {f"AP{size[0]}": curves.ap(area=size) for size in SIZES}
        for limit in (1, 10):
            fewer = match_lvis(self.matching.truth, self.matching.detections, self.matching.iou_type, limit)
            values[f"AR@{limit}"] = fewer.curves.ar()
        values[f"AR@{self._limit}"] = curves.ar()
        return values | {f"AR{size[0]}@{self._limit}": curves.ar(area=size) for size in SIZES}


def resampled(evaluated: Sequence[Evaluated], num_drawings: int, seed: int = 0, progress=iter) -> dict:
    """95 % intervals in percent, by drawing the images anew.

    Returns:
        intervals: [{name: {value, low, high}}], one dict a results file; differences: of every other file to the first,
        the same of (other - first), with the same drawings.
    """
    if num_drawings < 2:
        raise InputError(f"the bootstrap needs at least 2 drawings, 1000 are usual; got {num_drawings}")
    categories = evaluated[0].dataset.categories
    groups = {"AP": np.ones(len(categories.ids), dtype=bool)}
    groups |= {f"AP{letter}": members for letter, members in categories.members().items()}
    detectors = [WeightedAP(each.matching) for each in evaluated]
    drawn = bootstrap(detectors, groups, num_drawings, seed, progress)
    whole = [group_means(each.matching.curves.category_ap(), groups) for each in evaluated]

    def row(value: float, of_drawings: np.ndarray) -> dict:
        ends = interval(value, of_drawings)
        low, high = (np.nan, np.nan) if ends is None else ends
        return {"value": 100 * value, "low": 100 * low, "high": 100 * high}

    of = [{n: row(whole[i][n], drawn[n][:, i]) for n in groups} for i in range(len(evaluated))]
    differences = [
        {n: row(whole[i][n] - whole[0][n], drawn[n][:, i] - drawn[n][:, 0]) for n in groups}
        for i in range(1, len(evaluated))
    ]
    return {"drawings": num_drawings, "seed": seed, "intervals": of, "differences": differences}


def read_image_ids(path, images: Sequence[dict]) -> list[int]:
    """The ids of the images that a file lists: a text file with one a line, a JSON list, or annotations.

    Args:
        path: the file; it may name images by their files, too.
        images: the dataset's entries.

    Raises:
        InputError: no such file, or another content.
    """
    if not os.path.isfile(path):
        raise InputError(f"there is no file {path}")
    with open(path, encoding="utf-8-sig") as file:
        text = file.read()
    try:
        content = parsed(text.encode()) if text.lstrip()[:1] in ("{", "[") else text.replace(",", " ").split()
        entries = content["images"] if isinstance(content, dict) else content
        texts = [str(entry["id"] if isinstance(entry, dict) else entry) for entry in entries]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} must hold image ids, one a line, a JSON list, or annotations: {error}") from error
    if not texts:
        raise InputError(f"{path} lists no image")
    ids = np.array([image["id"] for image in images])
    return numbers_of(np.array(texts), ids, image_names(images)).tolist()


def _refuse_results(path) -> None:
    if os.path.isfile(path):
        with open(path, "rb") as file:
            if file.read(64).lstrip().startswith(b"["):
                raise InputError(f"{path} is a list, as of detections: results come first, annotations last")


def _is_federated(path, images: list) -> bool:
    """Whether a file is in LVIS's format: all its images have LVIS's fields."""
    lacking = sum(any(name not in image for name in FEDERATED_FIELDS) for image in images)
    if 0 < lacking < len(images):
        logger.warning(
            f"{path}: {lacking} of {len(images)} images lack {' or '.join(FEDERATED_FIELDS)}, so it is evaluated by "
            "COCO's rules; for LVIS's write both, as [], in every image"
        )
    return not lacking


def _check(path, data: dict) -> None:
    for part in ("images", "categories"):
        for entry in data[part]:
            if not isinstance(entry, dict) or not isinstance(entry.get("id"), int):
                raise InputError(f"{path}: an entry of `{part}` has no whole number as its `id`: {str(entry)[:80]}")
        if not data[part]:
            raise InputError(f"{path}: `{part}` is empty")
    if not data["annotations"]:
        raise InputError(f"{path} has no annotations to evaluate on; those of test sets are not public")
    for annotation in data["annotations"]:
        lacking = [name for name in NEEDED if name not in annotation]
        if lacking:
            raise InputError(f"{path}: annotation {annotation.get('id')} has no `{lacking[0]}`")


def _keep_images(path, data: dict, image_ids: str) -> None:
    listed = read_image_ids(image_ids, data["images"])
    wanted = set(listed)
    images = [image for image in data["images"] if image["id"] in wanted]
    there = {image["id"] for image in images}
    missing = sum(image_id not in there for image_id in listed)
    if missing:
        raise InputError(f"{image_ids} lists {missing} of {len(listed)} images that {path} has not")
    data["images"] = images
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] in wanted]


def _categories(truth: GroundTruth, names: dict, train: str | None) -> Categories:
    ids = truth.category_ids.tolist()
    order = {category_id: index for index, category_id in enumerate(ids)}
    metadata = {
        "thing_dataset_id_to_contiguous_id": order,
        "thing_classes": [str(names[i] if names[i] is not None else i) for i in ids],
    }
    counts = shipped_counts(ids, "".join(truth.frequency)) if train is None else training_counts(train, ids)
    categories = Categories.of(truth, metadata, counts)
    if train is None or counts is None:
        return categories
    return replace(categories, groups=counts.groups)  # one asked for these, not the file's


def _known(path, dataset: Dataset, detections: Detections, notes: list, unknown_share: float) -> tuple:
    """The detections of evaluated images and listed categories, and how many are of unknown ones."""
    other = np.isin(detections.image_id, dataset.left_out_images)
    has_image = np.isin(detections.image_id, dataset.truth.image_ids)
    has_category = np.isin(detections.category_id, dataset.truth.category_ids)
    unknown = {"image_id": int((~has_image & ~other).sum()), "category_id": int((~has_category & ~other).sum())}
    total = int((~other).sum())
    for name, number in unknown.items():
        if not number:
            continue
        part = "images" if name == "image_id" else "categories"
        line = f"{path}: {number} of {total} detections have a `{name}` that {dataset.path} does not list"
        if number > unknown_share * total:
            hint = contiguous_ids(dataset.truth, detections) or f"compare the ids with its `{part}`"
            raise InputError(f"{line}: are they of another dataset? If not, {hint}")
        notes.append(f"{line}; they are left out" if name == "image_id" else f"{line}; they match nothing")
    # LVIS's limit on an image counts detections of unknown categories, too, so these stay.
    return detections.select(has_image), unknown


def _with_boxes(truth: GroundTruth, detections: Detections) -> Detections:
    """With the boxes of the masks, for what is looked at by box."""
    image = np.searchsorted(truth.image_ids, detections.image_id).tolist()
    masks: Sequence = needed(detections.segmentation)
    if not isinstance(masks, PackedMasks):
        masks = [truth.rle(mask, i) for mask, i in zip(masks, image, strict=True)]
    box = np.empty((len(masks), 4))
    for start in range(0, len(masks), RLES_AT_ONCE):
        some = range(start, min(start + RLES_AT_ONCE, len(masks)))
        box[some] = mask_utils.toBbox([masks[i] for i in some])
    return replace(detections, box=box, segmentation=masks)
