"""The parts of a run that a YAML config asks for; :mod:`eql_d2.engine.lazy_parts` has the same for a LazyConfig."""

import importlib
from collections.abc import Callable

import detectron2.data.transforms as T
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog, build_detection_test_loader
from detectron2.data.detection_utils import build_augmentation
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling import build_model as build_detectron2_model
from detectron2.solver import build_lr_scheduler as build_detectron2_lr_scheduler
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping

from eql_d2.data.copy_paste import CopyPasteMapper
from eql_d2.data.image_errors import ExplainedMapper
from eql_d2.data.loading import check_masks, load_training_dicts
from eql_d2.data.train_loader import TrainLoader
from eql_d2.engine.optimizer import classifier_lr_factor
from eql_d2.engine.train_step import micro_batch_size
from eql_d2.engine.unknown_values import explained
from eql_d2.errors import InputError


@explained
def build_model(cfg: CfgNode) -> torch.nn.Module:
    return build_detectron2_model(cfg)


@explained
def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """Detectron2's SGD, with ``SOLVER.CLASSIFIER_LR_FACTOR`` on the classifier layer."""
    parameters = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        lr_factor_func=classifier_lr_factor(cfg.SOLVER.CLASSIFIER_LR_FACTOR),
    )
    optimizer = torch.optim.SGD(
        parameters,
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        nesterov=cfg.SOLVER.NESTEROV,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        foreach=True,
    )
    return maybe_add_gradient_clipping(cfg, optimizer)


@explained
def build_train_loader(cfg: CfgNode) -> TrainLoader:
    """A :class:`TrainLoader` of ``DATASETS.TRAIN``."""
    dataset = load_training_dicts(cfg)
    if cfg.MODEL.MASK_ON and isinstance(dataset, list):
        check_masks(dataset, cfg.INPUT.MASK_FORMAT)
    mapper = copy_paste_mapper(cfg, dataset) if cfg.INPUT.COPY_PASTE.MAX_OBJECTS else training_mapper(cfg)
    batch_size = micro_batch_size(cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE_STEPS)
    return TrainLoader(cfg, dataset=dataset, mapper=ExplainedMapper(mapper), total_batch_size=batch_size)


@explained
def build_test_loader(cfg: CfgNode, dataset_name: str):
    return build_detection_test_loader(cfg, dataset_name, mapper=ExplainedMapper(DatasetMapper(cfg, False)))


build_lr_scheduler = explained(build_detectron2_lr_scheduler)


def training_mapper(cfg: CfgNode) -> Callable[[dict], dict | None]:
    """Detectron2's, with large-scale jitter in the place of its resizing where ``INPUT.LSJ.SIZE`` asks for it.

    An architecture may have a ``training_mapper`` of its own.
    """
    own = getattr(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), "training_mapper", None)
    if own is not None:
        return own(cfg)
    if cfg.INPUT.LSJ.SIZE and cfg.MODEL.MASK_ON and cfg.INPUT.MASK_FORMAT == "polygon":
        importlib.import_module("shapely")  # or Detectron2 would miss it image by image
    return DatasetMapper(**mapper_arguments(cfg))


def mapper_arguments(cfg: CfgNode) -> dict:
    arguments = DatasetMapper.from_config(cfg, True)
    if cfg.INPUT.LSJ.SIZE:
        # A cropped object's box is that of the mask that is left.
        arguments.update(augmentations=large_scale_jitter(cfg), recompute_boxes=cfg.MODEL.MASK_ON)
    return arguments


def copy_paste_mapper(cfg: CfgNode, dataset: list[dict]) -> CopyPasteMapper:
    """``INPUT.COPY_PASTE`` on top of the other augmentation."""
    model = cfg.MODEL
    if model.KEYPOINT_ON or model.LOAD_PROPOSALS or (model.MASK_ON and cfg.INPUT.MASK_FORMAT != "bitmask"):
        raise InputError(
            f"INPUT.COPY_PASTE.MAX_OBJECTS is {cfg.INPUT.COPY_PASTE.MAX_OBJECTS}: pasting needs MODEL.KEYPOINT_ON "
            f"False, MODEL.LOAD_PROPOSALS False and, with masks, INPUT.MASK_FORMAT 'bitmask'"
        )
    arguments = mapper_arguments(cfg) | {"use_instance_mask": True, "instance_mask_format": "bitmask"}
    orders = [MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id") for name in cfg.DATASETS.TRAIN]
    node = cfg.INPUT.COPY_PASTE
    return CopyPasteMapper(
        DatasetMapper(**arguments),
        dataset,
        max_objects=node.MAX_OBJECTS,
        strength=node.STRENGTH,
        min_visible=node.MIN_VISIBLE,
        cache_mb=node.CACHE_MB,
        keep_masks=model.MASK_ON,
        dataset_ids=[{own: i for i, own in order.items()} for order in orders] if all(orders) else (),
    )


def large_scale_jitter(cfg: CfgNode) -> list:
    """Resize by a random factor of the size, cut or pad to the size, flip: "Simple Copy-Paste" (arXiv:2012.07177)."""
    size, (low, high) = cfg.INPUT.LSJ.SIZE, cfg.INPUT.LSJ.SCALE_RANGE
    if size < 0 or not 0 < low <= high:
        raise InputError(
            f"INPUT.LSJ.SIZE is {size} and INPUT.LSJ.SCALE_RANGE {(low, high)}: expected a side in pixels (0 is no "
            f"LSJ), and the least and the greatest factor, above 0"
        )
    if cfg.INPUT.CROP.ENABLED:
        raise InputError("INPUT.CROP.ENABLED and INPUT.LSJ.SIZE are both set, and LSJ crops already: keep one of them")
    flips = [a for a in build_augmentation(cfg, is_train=True) if isinstance(a, T.RandomFlip)]
    jitter = T.ResizeScale(min_scale=low, max_scale=high, target_height=size, target_width=size)
    return [jitter, T.FixedSizeCrop(crop_size=(size, size)), *flips]
