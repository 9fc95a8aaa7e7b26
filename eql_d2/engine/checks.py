"""What a run is checked for before it starts, so that a mistake costs a line and not an evening."""

import difflib
import re
from contextlib import contextmanager
from typing import Iterable, List

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.utils.file_io import PathManager

from eql_d2.data.builtin import datasets_root
from eql_d2.data.frequencies import read_json
from eql_d2.losses import CLS_LOSS_REGISTRY
from eql_d2.losses.hyper_parameters import NODE

HEAD_KEY, LOSS_KEY = "MODEL.ROI_HEADS.NAME", f"{NODE}.NAME"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean X or Y?` with the names most like ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f"; did you mean {' or '.join(close)}?" if close else ""


@contextmanager
def explained_key_errors(cfg: CfgNode):
    """Add the nearest keys of ``cfg`` to yacs's error for one that does not exist."""
    try:
        yield
    except (KeyError, AssertionError) as error:
        unknown = re.search(r"Non-existent (?:config )?key: ([\w.]+)", str(error))
        if unknown is None:
            raise
        key = unknown.group(1)
        raise KeyError(
            f"there is no config key {key}{did_you_mean(key, config_keys(cfg)) or ': see eql_d2/config.py'}"
        ) from error


def config_keys(cfg: CfgNode, prefix: str = "") -> List[str]:
    """Full names of all keys, nodes included."""
    keys = []
    for name, value in cfg.items():
        keys.append(f"{prefix}{name}")
        if isinstance(value, CfgNode):
            keys += config_keys(value, f"{prefix}{name}.")
    return keys


def check_run(cfg: CfgNode, train: bool) -> None:
    """Check the names and the datasets of a config; cheap but for reading the annotations of the test sets.

    Args:
        train: whether ``DATASETS.TRAIN`` is needed, too.

    Raises:
        ValueError: an unknown or ignored ROI head or loss, or see :func:`check_dataset` and :func:`check_fixed_ap`.
    """
    check_names(cfg)
    if train and not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty: name a dataset to train on")
    for name in cfg.DATASETS.TRAIN if train else ():
        check_dataset(cfg, "DATASETS.TRAIN", name, read=False)  # the data loader is about to read it
    for name in cfg.DATASETS.TEST:
        check_dataset(cfg, "DATASETS.TEST", name, read=True)  # or the mistake shows when training is done
        check_evaluator_type(name)
    check_fixed_ap(cfg)
    if train and cfg.SOLVER.AMP.ENABLED and torch.device(cfg.MODEL.DEVICE).type != "cuda":
        raise ValueError(
            f"SOLVER.AMP.ENABLED needs a GPU, but MODEL.DEVICE is {cfg.MODEL.DEVICE}: set it to False"
        )


def check_fixed_ap(cfg: CfgNode) -> None:
    """Fixed AP needs more detections than the standard metrics, and our own evaluation."""
    key = "TEST.FIXED_AP_DETECTIONS_PER_IMAGE"
    limit, standard = cfg.TEST.FIXED_AP_DETECTIONS_PER_IMAGE, cfg.TEST.DETECTIONS_PER_IMAGE
    if limit > 0 and not 0 <= standard <= limit:
        raise ValueError(
            f"{key} is {limit}, fewer than TEST.DETECTIONS_PER_IMAGE {standard}: raise it, or set -1 for all "
            f"detections or 0 for no fixed AP"
        )
    if limit != 0 and cfg.TEST.LVIS_BACKEND != "eql_d2":
        raise ValueError(f"{key} is {limit}, but TEST.LVIS_BACKEND '{cfg.TEST.LVIS_BACKEND}' has no fixed AP: set 0")


def check_evaluator_type(name: str) -> str:
    """The evaluator that the dataset's metadata names: "lvis" or "coco", or a ValueError."""
    kind = MetadataCatalog.get(name).get("evaluator_type")
    if kind not in ("lvis", "coco"):
        raise ValueError(
            f"dataset '{name}' of DATASETS.TEST has evaluator_type {kind!r} in its metadata; expected 'lvis' or "
            f"'coco': MetadataCatalog.get('{name}').set(evaluator_type=...)"
        )
    return kind


def check_names(cfg: CfgNode) -> None:
    """The ROI head and the loss must be registered, and the head must be one that takes the loss."""
    head, loss = cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME
    for key, name, registry in (
        (HEAD_KEY, head, ROI_HEADS_REGISTRY),
        (LOSS_KEY, loss, CLS_LOSS_REGISTRY),
    ):
        known = sorted(name for name, _ in registry)
        if name and name not in known:
            raise ValueError(
                f"{key} is '{name}', which is not registered{did_you_mean(name, known) or f'; choose one of {known}'}"
                f" (one of your own must be imported first)"
            )
    calibration = cfg.MODEL.ROI_BOX_HEAD.CALIBRATION.NAME
    if (loss or calibration) and ROI_HEADS_REGISTRY.get(head).__module__.startswith("detectron2."):
        key = LOSS_KEY if loss else "MODEL.ROI_BOX_HEAD.CALIBRATION.NAME"
        raise ValueError(
            f"{key} is '{loss or calibration}', but {HEAD_KEY} is Detectron2's own '{head}', which ignores it: choose "
            f"LongTailROIHeads, LongTailCascadeROIHeads or LongTailRes5ROIHeads"
        )


def check_dataset(cfg: CfgNode, key: str, name: str, read: bool) -> None:
    """A dataset must be registered, its annotation file there, and its categories as many as the model's classes.

    Args:
        key: the config key that names the dataset, for messages.
        read: whether to read the annotation file even where the metadata has the categories.

    Raises:
        ValueError: one of these does not hold, or the file read is no JSON or lacks `images` or `categories`.
    """
    if name not in DatasetCatalog.list():
        raise ValueError(
            f"dataset '{name}' of {key} is not registered{did_you_mean(name, DatasetCatalog.list()) or '.'} "
            f"Register a file of your own by DATASETS.REGISTER"
        )
    metadata = MetadataCatalog.get(name)
    if metadata.get("prepare") is not None:
        metadata.prepare()  # datasets that make themselves (MiniLVIS)
    json_file = metadata.get("json_file")
    if json_file is not None and not PathManager.isfile(json_file):
        raise ValueError(
            f"the annotation file of '{name}' ({key}) is not there: {json_file}. Put it there, or set the environment "
            f"variable DETECTRON2_DATASETS (now {datasets_root()}) to the folder that your datasets are in"
        )
    classes = metadata.get("thing_classes")
    if json_file is not None and (read or classes is None):
        content = read_json(PathManager.get_local_path(json_file), required=("images", "categories"))
        classes = content["categories"] if classes is None else classes
    if classes is not None:
        check_num_classes(cfg, key, name, len(classes))


def check_num_classes(cfg: CfgNode, key: str, name: str, found: int) -> None:
    """``MODEL.ROI_HEADS.NUM_CLASSES`` must be the number of categories of the dataset."""
    if found != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise ValueError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, but '{name}' ({key}) has {found} "
            f"categories: set NUM_CLASSES {found}, or name the right dataset"
        )


@contextmanager
def explained_dataset_errors(names: Iterable[str]):
    """Where a loader fails on an annotation file that is no JSON or lacks a part, say so instead."""
    try:
        yield
    except (ValueError, KeyError, AssertionError):
        for name in names:
            json_file = MetadataCatalog.get(name).get("json_file")
            if json_file is not None:
                required = ("images", "annotations", "categories")
                read_json(PathManager.get_local_path(json_file), required)
        raise
