"""The dataset dicts to train on: Detectron2's, in less time and memory where there are a million objects."""

from detectron2.data import get_detection_dataset_dicts

from eql_d2.data.federated import get_checked_dataset_dicts
from eql_d2.data.json_files import without_garbage_collection


def load_training_dicts(cfg) -> list[dict]:
    """What Detectron2's training loader reads of ``DATASETS.TRAIN``: the same images, in the same order.

    Three things differ. With ``CLS_LOSS.IMAGE_LABELS`` an image says which categories it was checked for. Python's
    search for cycles, which slows the making of millions of objects, is paused. And without ``MODEL.MASK_ON`` the
    objects have no `segmentation`, which nobody reads then: long polygons are most of what a data loader holds in
    memory, and of its work on an image's dict. Pass the result to the loader as ``dataset``.
    """
    with_labels = cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.IMAGE_LABELS
    read = get_checked_dataset_dicts if with_labels else get_detection_dataset_dicts
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    with without_garbage_collection():
        dicts = read(
            cfg.DATASETS.TRAIN,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=keypoints,
            proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        )
        if not cfg.MODEL.MASK_ON and isinstance(dicts, list):  # else a map-style dataset of the user's own
            for i, image in enumerate(dicts):  # copied: the list of a registered dataset may be its owner's
                dicts[i] = without_segmentation(image)
    return dicts


def without_segmentation(image: dict) -> dict:
    """A copy whose objects have no `segmentation`."""
    if "annotations" not in image:
        return image
    objects = [{key: value for key, value in a.items() if key != "segmentation"} for a in image["annotations"]]
    return {**image, "annotations": objects}
