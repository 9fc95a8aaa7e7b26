"""What a run is set to, whichever kind of file says so: a YAML file (CfgNode) or a LazyConfig (DictConfig).

Everything in :mod:`eql_d2.engine` reads a config of either kind by :func:`settings_of`; only how the parts of a run are
built differs (:mod:`eql_d2.engine.yaml_parts`, :mod:`eql_d2.engine.lazy_parts`).
"""

import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from detectron2.config import CfgNode, instantiate
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, RetinaNet
from detectron2.modeling.meta_arch.fcos import FCOS
from omegaconf import DictConfig, ListConfig, OmegaConf

from eql_d2.data import ClassFrequencies
from eql_d2.data.frequencies import FrequenciesNotFound, TailRule
from eql_d2.errors import did_you_mean
from eql_d2.losses import CLS_LOSS_REGISTRY
from eql_d2.losses.hyper_parameters import tail_rule
from eql_d2.modeling.dense import DEFAULT_LOSS
from eql_d2.modeling.long_tail import predictor_nodes, target_of

logger = logging.getLogger(__name__)

# Settings that a config states as they are: the key of a YAML file, that of a LazyConfig, and its default there.
STATED: dict[str, tuple[str, str, Any]] = {
    "output_dir": ("OUTPUT_DIR", "train.output_dir", "./output"),
    "weights": ("MODEL.WEIGHTS", "train.init_checkpoint", ""),
    "device": ("MODEL.DEVICE", "train.device", "cuda"),
    "max_iter": ("SOLVER.MAX_ITER", "train.max_iter", 90000),
    "eval_period": ("TEST.EVAL_PERIOD", "train.eval_period", 0),
    "checkpoint_period": ("SOLVER.CHECKPOINT_PERIOD", "train.checkpointer.period", 5000),
    "cudnn_benchmark": ("CUDNN_BENCHMARK", "train.cudnn_benchmark", False),
    "accumulate_steps": ("SOLVER.ACCUMULATE_STEPS", "train.accumulate_steps", 1),
    "freeze": ("MODEL.FREEZE", "train.freeze", ()),
    "new_classifier": ("MODEL.NEW_CLASSIFIER", "train.new_classifier", False),
    "gradient_balance_period": ("GRADIENT_BALANCE_PERIOD", "train.gradient_balance_period", 20),
    "fixed_ap_detections": ("TEST.FIXED_AP_DETECTIONS_PER_IMAGE", "test.fixed_ap_detections_per_image", 0),
    "boundary_ap": ("TEST.BOUNDARY_AP", "test.boundary_ap", False),
    "lvis_backend": ("TEST.LVIS_BACKEND", "test.lvis_backend", "eql_d2"),
}
# The keys of others, for messages.
FOUND = {
    "train_sets": ("DATASETS.TRAIN", "dataloader.train.dataset.names"),
    "test_sets": ("DATASETS.TEST", "dataloader.test.dataset.names"),
    "detections_per_image": ("TEST.DETECTIONS_PER_IMAGE", "dataloader.evaluator.max_dets_per_image"),
    "ema_decay": ("MODEL_EMA.DECAY", "train.model_ema.decay"),
}
# What is read of a LazyConfig beside :data:`STATED`.
LAZY_SECTIONS = ("train.amp", "train.ddp", "train.log_period", "train.model_ema", "train.seed")
DENSE_SECTIONS = {RetinaNet: "RETINANET", FCOS: "FCOS"}  # of MODEL; all others read ROI_HEADS


@dataclass(frozen=True)
class RunSettings:
    """What training and evaluation go by, apart from the parts that they work with.

    Args:
        keys: setting -> the config key that it comes from, for messages.
        weights: the checkpoint that a new run starts from, "" for none.
        seed: >= 0, or None to draw one.
        amp: "bf16", "fp16", or None for full precision.
        ddp: arguments of DistributedDataParallel.
        checkpoints_kept: of the numbered ones, the newest so many; None: all.
        ema_decay: in (0, 1), or None for no average of the weights.
        num_classes: K, None where the config does not say.
        mask_on: whether masks are trained and predicted.
        score_threshold: that a detection must exceed.
        frequencies: counts the training set, or raises FrequenciesNotFound.
        tail_rule: gives that of the classification loss, None where it has none.
        precise_bn_iterations: 0 for none.
        expected_results: ``TEST.EXPECTED_RESULTS``.
    """

    keys: dict[str, str]
    output_dir: str
    weights: str
    device: str
    seed: int | None
    max_iter: int
    amp: str | None
    accumulate_steps: int
    freeze: Sequence[str]
    new_classifier: bool
    checkpoint_period: int
    eval_period: int
    write_period: int
    gradient_balance_period: int
    ema_decay: float | None
    num_classes: int | None
    mask_on: bool
    train_sets: tuple[str, ...]
    test_sets: tuple[str, ...]
    detections_per_image: int
    score_threshold: float
    fixed_ap_detections: int
    boundary_ap: bool
    lvis_backend: str
    frequencies: Callable[[], ClassFrequencies]
    tail_rule: Callable[[], TailRule | None]
    ddp: dict[str, Any] = field(default_factory=lambda: {"broadcast_buffers": False})
    checkpoints_kept: int | None = None
    precise_bn_iterations: int = 0
    test_time_augmentation: bool = False
    expected_results: Sequence = ()
    cudnn_benchmark: bool = False


def settings_of(cfg) -> RunSettings:
    """The settings of a config: a CfgNode of a YAML file, or a DictConfig of a LazyConfig."""
    return lazy_settings(cfg) if isinstance(cfg, DictConfig) else yaml_settings(cfg)


def yaml_settings(cfg: CfgNode) -> RunSettings:
    solver, test, head = cfg.SOLVER, cfg.TEST, detecting_head(cfg)
    keys = {setting: names[0] for setting, names in (FOUND | STATED).items()}
    return RunSettings(
        **{setting: value_of(cfg, keys[setting]) for setting in STATED},
        keys=keys | {"num_classes": f"MODEL.{head}.NUM_CLASSES"},
        seed=cfg.SEED if cfg.SEED >= 0 else None,
        amp=solver.AMP.PRECISION if solver.AMP.ENABLED else None,
        write_period=20,  # as in Detectron2
        ema_decay=cfg.MODEL_EMA.DECAY if cfg.MODEL_EMA.ENABLED else None,
        num_classes=cfg.MODEL[head].NUM_CLASSES,
        mask_on=cfg.MODEL.MASK_ON,
        train_sets=tuple(cfg.DATASETS.TRAIN),
        test_sets=tuple(cfg.DATASETS.TEST),
        detections_per_image=test.DETECTIONS_PER_IMAGE,
        score_threshold=cfg.MODEL[head].SCORE_THRESH_TEST,
        frequencies=partial(ClassFrequencies.from_config, cfg, head),
        tail_rule=lambda: tail_rule(cfg, CLS_LOSS_REGISTRY.get(loss_name(cfg))),
        precise_bn_iterations=test.PRECISE_BN.NUM_ITER if test.PRECISE_BN.ENABLED else 0,
        test_time_augmentation=test.AUG.ENABLED,
        expected_results=test.EXPECTED_RESULTS,
    )


def value_of(cfg: CfgNode, key: str):
    """What ``cfg`` has at a dotted key."""
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def detecting_head(cfg: CfgNode) -> str:
    """The section of MODEL with the number of classes and the score threshold that the architecture reads."""
    name = cfg.MODEL.META_ARCHITECTURE
    architecture = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else object
    sections = (section for of, section in DENSE_SECTIONS.items() if issubclass(architecture, of))
    return next(sections, "ROI_HEADS")


def loss_name(cfg: CfgNode) -> str:
    """The classification loss of a YAML config: its head's own, the one it names, or Detectron2's."""
    if detecting_head(cfg) != "ROI_HEADS":
        return cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME or DEFAULT_LOSS
    return loss_of_heads(cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME)


def loss_of_heads(name: str, chosen: str) -> str:
    own = getattr(ROI_HEADS_REGISTRY.get(name), "loss_name", None) if name in ROI_HEADS_REGISTRY else None
    return own or chosen or "SoftmaxCrossEntropy"


def lazy_settings(cfg: DictConfig) -> RunSettings:
    get = partial(OmegaConf.select, cfg)
    stated = {setting: get(key, default=default) for setting, (_, key, default) in STATED.items()}
    stated["weights"] = stated["weights"] or ""
    seed, heads = get("train.seed", default=-1), cfg.model.get("roi_heads")
    keys = {setting: names[1] for setting, names in (FOUND | STATED).items()}
    return RunSettings(
        **stated,
        keys=keys | {"num_classes": "model.num_classes" if heads is None else "model.roi_heads.num_classes"},
        seed=seed if seed >= 0 else None,
        amp=get("train.amp.precision", default="bf16") if get("train.amp.enabled") else None,
        checkpoints_kept=get("train.checkpointer.max_to_keep"),
        write_period=get("train.log_period", default=20),
        ema_decay=get("train.model_ema.decay", default=0.999) if get("train.model_ema.enabled") else None,
        num_classes=(heads or cfg.model).get("num_classes"),
        mask_on=(heads or {}).get("mask_head") is not None,
        train_sets=dataset_names(cfg.dataloader, "train"),
        test_sets=dataset_names(cfg.dataloader, "test"),
        detections_per_image=lazy_detections_per_image(cfg),
        score_threshold=predictor_setting(cfg.model, "test_score_thresh", 0.0),
        frequencies=partial(lazy_frequencies, cfg, stated["output_dir"]),
        tail_rule=partial(lazy_tail_rule, cfg.model),
        ddp=dict(get("train.ddp") or {"broadcast_buffers": False}),
    )


def warn_of_unread_keys(cfg: DictConfig) -> None:
    """A line for each key of ``train`` and ``test`` that nobody reads; a fork's config may well have some."""
    read = [*LAZY_SECTIONS, *(key for _, key, _ in STATED.values())]
    for part in ("train", "test"):
        known = [key.split(".")[1] for key in read if key.startswith(f"{part}.")]
        for key in cfg.get(part) or ():
            if key not in known:
                logger.warning("the config's %s.%s is read by nothing here%s", part, key, did_you_mean(key, known))


def dataset_names(dataloader: DictConfig, part: str) -> tuple[str, ...]:
    """The registered datasets of `dataloader.train` or `dataloader.test`; () for data of a user's own making."""
    dataset = (dataloader.get(part) or {}).get("dataset")
    names = dataset.get("names") if isinstance(dataset, DictConfig) else None
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else tuple(names)


def lazy_detections_per_image(cfg: DictConfig) -> int:
    evaluator = cfg.dataloader.get("evaluator")
    limit = evaluator.get("max_dets_per_image") if isinstance(evaluator, DictConfig) else None
    if isinstance(limit, int):
        return limit
    name = "test_topk_per_image" if "roi_heads" in cfg.model else "max_detections_per_image"
    return predictor_setting(cfg.model, name, 100)


def predictor_setting(model: DictConfig, name: str, default):
    """An argument of the box predictor that detects, the last of a cascade, or Detectron2's default."""
    predictors = predictor_nodes(model)
    return predictors[-1].get(name, default) if predictors else default


def lazy_frequencies(cfg: DictConfig, output_dir: str) -> ClassFrequencies:
    """Those of the classification loss, or else counted from the training set."""
    of_loss = loss_argument(cfg.model, "frequencies")
    if of_loss is not None:
        return instantiate(of_loss)
    names = dataset_names(cfg.dataloader, "train")
    if not names:
        raise FrequenciesNotFound(
            "the model's loss has no frequencies, and dataloader.train.dataset.names names no dataset: nothing to count"
        )
    return ClassFrequencies.sum([ClassFrequencies.from_dataset(name, output_dir) for name in names])


def lazy_tail_rule(model: DictConfig) -> TailRule | None:
    """The rule by which the model's loss selects its tail, its default included; None where it has none."""
    given = loss_argument(model, "tail")
    if given is not None:
        return instantiate(given)
    for node in loss_nodes(model):
        loss_class = target_of(node)
        arguments = inspect.signature(loss_class).parameters if inspect.isclass(loss_class) else {}
        if "tail" in arguments and isinstance(arguments["tail"].default, TailRule):
            return arguments["tail"].default
    return None


def loss_argument(model: DictConfig, name: str):
    """The argument ``name`` of the first classification loss of a model's config that has it, or None."""
    return next((node.get(name) for node in loss_nodes(model) if node.get(name) is not None), None)


def loss_nodes(model: DictConfig) -> list[DictConfig]:
    """The configs of a model's classification losses, and those within: a loss may wrap another."""
    return [node for predictor in predictor_nodes(model) for node in config_nodes(predictor.get("cls_loss"))]


def config_nodes(node) -> list[DictConfig]:
    """``node`` and all configs within it."""
    if isinstance(node, DictConfig):
        return [node, *(n for value in node.values() for n in config_nodes(value))]
    return [n for value in node for n in config_nodes(value)] if isinstance(node, ListConfig) else []
