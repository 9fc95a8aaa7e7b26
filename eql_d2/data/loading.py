"""The dataset dicts to train on: Detectron2's, in less time and memory where there are a million objects."""

import ctypes
import sys
from collections.abc import Callable, Iterable, Sequence
from unittest.mock import patch

from detectron2.data import MetadataCatalog, build, get_detection_dataset_dicts
from detectron2.data.detection_utils import check_metadata_consistency

from eql_d2.data.annotations import forget_annotations
from eql_d2.data.federated import get_checked_dataset_dicts
from eql_d2.data.json_files import without_garbage_collection
from eql_d2.data.packed_list import Disposable
from eql_d2.data.samplers import SOURCE
from eql_d2.errors import InputError


def load_training_dicts(cfg) -> list[dict]:
    """What Detectron2's training loader reads of ``DATASETS.TRAIN``: the same images, in the same order.

    Four things differ. Of several datasets an image says which one it is from, in ``dataset_source``. With
    ``CLS_LOSS.IMAGE_LABELS`` it says which categories it was checked for. Python's search for cycles, which slows the
    making of millions of objects, is paused. And where neither ``MODEL.MASK_ON`` nor copy-paste reads them, the objects
    have no `segmentation`: long polygons are most of what a data loader holds in memory, and of its work on an image's
    dict. Pass the result to the loader as ``dataset``; it is emptied there.
    """
    with_labels = cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.IMAGE_LABELS
    read = get_checked_dataset_dicts if with_labels else get_detection_dataset_dicts
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    with without_garbage_collection(), histogram_at_once():
        dicts = read_each(
            read,
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=keypoints,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
        masks_are_read = cfg.MODEL.MASK_ON or cfg.INPUT.COPY_PASTE.MAX_OBJECTS > 0
        if not masks_are_read and isinstance(dicts, list):  # else a map-style dataset of the user's own
            for i, image in enumerate(dicts):  # copied: the list of a registered dataset may be its owner's
                dicts[i] = without_segmentation(image)
    forget_files(cfg.DATASETS.TRAIN, kept=cfg.DATASETS.TEST)
    return Disposable(dicts) if isinstance(dicts, list) else dicts


def histogram_at_once():
    """Within this context Detectron2's table of objects by class takes one call of numpy and not one an image."""
    of_detectron2 = build.print_instances_class_histogram

    def of_all(dataset_dicts, class_names):
        of_detectron2([{"annotations": [a for image in dataset_dicts for a in image["annotations"]]}], class_names)

    return patch.object(build, "print_instances_class_histogram", of_all)


def forget_files(names: Iterable[str], kept: Iterable[str]) -> None:
    """Let go of the annotation files of datasets whose dicts are made, but of those to ``kept``, for evaluation."""
    for name in {*names} - {*kept}:
        forget_annotations(MetadataCatalog.get(name).get("json_file"))


def give_memory_back() -> None:
    """Let the system have what was freed; glibc would keep it, 1 GiB a process after LVIS's training set."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # another C library has none
        trim(0)


def read_each(read: Callable, names, proposal_files, **kwargs):
    """``read(names, ...)``, where each image of several datasets says which one it is from."""
    if len(names) < 2:
        return read(names, proposal_files=proposal_files, **kwargs)
    files = [None] * len(names) if proposal_files is None else [[file] for file in proposal_files]
    parts = [read([name], proposal_files=file, **kwargs) for name, file in zip(names, files, strict=True)]
    if not all(isinstance(part, list) for part in parts):  # map-style datasets of the user's own
        return read(names, proposal_files=proposal_files, **kwargs)
    if all(MetadataCatalog.get(name).get("thing_classes") for name in names):
        check_metadata_consistency("thing_classes", names)
    return [{**image, SOURCE: place} for place, part in enumerate(parts) for image in part]


def check_masks(dicts: Sequence[dict], mask_format: str) -> None:
    """Say before the first iteration that an object to train masks on has none, or one that would end the run.

    Args:
        dicts: Detectron2's dataset dicts.
        mask_format: "polygon" or "bitmask".

    Raises:
        InputError: an object without mask, or an RLE where polygons are expected.
    """
    lacking, encoded = [], []  # images of such objects
    for image in dicts:
        for annotation in image.get("annotations", ()):
            segmentation = annotation.get("segmentation")
            if annotation.get("iscrowd", 0):
                continue
            if not segmentation:
                lacking.append(image.get("image_id"))
            elif mask_format == "polygon" and isinstance(segmentation, dict):
                encoded.append(image.get("image_id"))
    if lacking:
        raise InputError(
            f"{len(lacking)} objects to train masks on have none, in image {lacking[0]} first: train boxes alone "
            f"(MODEL.MASK_ON False, in a LazyConfig a model without mask head and use_instance_mask), or give these "
            f"objects a `segmentation`"
        )
    if encoded:
        raise InputError(
            f"{len(encoded)} objects have an RLE as their mask, in image {encoded[0]} first, and polygons are "
            f"expected: set INPUT.MASK_FORMAT bitmask (in a LazyConfig the mapper's instance_mask_format)"
        )


def without_segmentation(image: dict) -> dict:
    """A copy whose objects have no `segmentation`."""
    if "annotations" not in image:
        return image
    objects = [{key: value for key, value in a.items() if key != "segmentation"} for a in image["annotations"]]
    return {**image, "annotations": objects}
