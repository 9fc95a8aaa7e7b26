"""The dataset dicts to train on: Detectron2's, in less time and memory where there are a million objects."""

from collections.abc import Callable

from detectron2.data import MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.detection_utils import check_metadata_consistency

from eql_d2.data.federated import get_checked_dataset_dicts
from eql_d2.data.json_files import without_garbage_collection
from eql_d2.data.samplers import SOURCE


def load_training_dicts(cfg) -> list[dict]:
    """What Detectron2's training loader reads of ``DATASETS.TRAIN``: the same images, in the same order.

    Four things differ. Of several datasets an image says which one it is from, in ``dataset_source``. With
    ``CLS_LOSS.IMAGE_LABELS`` it says which categories it was checked for. Python's search for cycles, which slows the
    making of millions of objects, is paused. And where neither ``MODEL.MASK_ON`` nor copy-paste reads them, the objects
    have no `segmentation`: long polygons are most of what a data loader holds in memory, and of its work on an image's
    dict. Pass the result to the loader as ``dataset``.
    """
    with_labels = cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.IMAGE_LABELS
    read = get_checked_dataset_dicts if with_labels else get_detection_dataset_dicts
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    with without_garbage_collection():
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
    return dicts


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


def without_segmentation(image: dict) -> dict:
    """A copy whose objects have no `segmentation`."""
    if "annotations" not in image:
        return image
    objects = [{key: value for key, value in a.items() if key != "segmentation"} for a in image["annotations"]]
    return {**image, "annotations": objects}
