"""The parts of a run that a LazyConfig asks for; :mod:`eql_d2.engine.yaml_parts` has the same for a YAML config.

A config has ``model``, ``optimizer``, ``lr_multiplier``, ``dataloader`` and ``train``, as Detectron2's own. What is
read of ``train``, and of ``test``, is in :data:`eql_d2.engine.settings.STATED`.
"""

import copy
import importlib
import logging

import torch
from detectron2.config import instantiate
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.solver import LRMultiplier
from omegaconf import DictConfig
from torch import nn

from eql_d2.data.image_errors import ExplainedMapper
from eql_d2.data.loading import check_masks, forget_files
from eql_d2.data.packed_list import Disposable
from eql_d2.data.train_loader import TrainLoader, sampler_of_configs
from eql_d2.engine.settings import config_nodes, settings_of
from eql_d2.engine.train_step import micro_batch_size
from eql_d2.modeling.activation_checkpoint import checkpoint_activations
from eql_d2.modeling.long_tail import described, target_of

logger = logging.getLogger(__name__)

# Arguments of build_detection_train_loader that TrainLoader has, too.
TAKEN = ("dataset", "mapper", "sampler", "total_batch_size", "aspect_ratio_grouping", "num_workers")
CROPS = ("FixedSizeCrop", "RandomCrop")


def build_model(cfg: DictConfig) -> nn.Module:
    """The model on its device; activation checkpointing is torch's own, in the place of fairscale's."""
    node = copy.deepcopy(cfg).model  # with what its interpolations refer to
    backbones = [n for n in config_nodes(node) if n.get("use_act_checkpoint")]
    for backbone in backbones:
        backbone.use_act_checkpoint = False
    model = instantiate(node)
    if backbones:
        checkpoint_activations(model)
    return model.to(settings_of(cfg).device)


def build_optimizer(cfg: DictConfig, model: nn.Module) -> torch.optim.Optimizer:
    node = copy.deepcopy(cfg).optimizer
    node.params.model = model
    return instantiate(node)


def build_lr_scheduler(cfg: DictConfig, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    return LRMultiplier(optimizer, instantiate(cfg.lr_multiplier), settings_of(cfg).max_iter)


def build_train_loader(cfg: DictConfig):
    """``dataloader.train``: a :class:`TrainLoader` also where it names Detectron2's loader, which cannot resume.

    A loader of a user's own is taken as it is, but for ``total_batch_size`` where it has that.
    """
    node, run = copy.deepcopy(cfg).dataloader.train, settings_of(cfg)
    if "total_batch_size" in node:
        node.total_batch_size = micro_batch_size(node.total_batch_size, run.accumulate_steps)
    target = target_of(node)
    if not (target is TrainLoader or replaceable(node)):
        return instantiate(node)
    if target is not TrainLoader:
        logger.info("dataloader.train: TrainLoader in the place of %s, so that the run can be resumed", described(node))
    if crops_polygons(node.mapper):
        importlib.import_module("shapely")  # or Detectron2 would miss it image by image
    arguments = {name: instantiate(value) for name, value in node.items() if name != "_target_"}
    forget_files(run.train_sets, kept=run.test_sets)
    mapper = arguments["mapper"]
    if isinstance(arguments["dataset"], list):
        if getattr(mapper, "use_instance_mask", False):
            check_masks(arguments["dataset"], mapper.instance_mask_format)
        arguments["dataset"] = Disposable(arguments["dataset"])
    arguments["mapper"] = ExplainedMapper(arguments["mapper"])
    arguments.setdefault("seed", run.seed)
    if arguments.get("sampler") is None:
        arguments.setdefault("make_sampler", sampler_of_configs)
    return TrainLoader(**arguments)


def replaceable(node: DictConfig) -> bool:
    """Whether a loader's config is one of Detectron2's own with nothing that TrainLoader has not."""
    if target_of(node) is not build_detection_train_loader:
        return False
    foreign = [key for key, value in node.items() if key not in (*TAKEN, "_target_") and value is not None]
    if foreign:
        logger.warning(
            "dataloader.train has %s, which TrainLoader has not: %s stays, and a resumed run does not equal an "
            "uninterrupted one",
            foreign,
            described(node),
        )
    return not foreign


def build_test_loader(cfg: DictConfig, dataset_name: str):
    """``dataloader.test``, of one of its datasets."""
    node = cfg.dataloader.test
    if len(settings_of(cfg).test_sets) > 1:
        node = copy.deepcopy(cfg).dataloader.test
        node.dataset.names = dataset_name
    if target_of(node) is not build_detection_test_loader:
        return instantiate(node)
    arguments = {name: instantiate(value) for name, value in node.items() if name != "_target_"}
    return build_detection_test_loader(**arguments | {"mapper": ExplainedMapper(arguments["mapper"])})


def crops_polygons(mapper: DictConfig) -> bool:
    if not (isinstance(mapper, DictConfig) and mapper.get("use_instance_mask")):
        return False
    crops = any(described(augmentation) in CROPS for augmentation in mapper.get("augmentations") or ())
    return crops and mapper.get("instance_mask_format", "polygon") == "polygon"
