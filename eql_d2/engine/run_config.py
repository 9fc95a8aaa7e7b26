"""The config of a run in its folder, and ``--resume`` with another: what may change, and what may not.

A training writes `config.yaml`. An evaluation writes `inference/config.yaml`, beside its results: it may be of another
checkpoint, with other keys, and the training in the same folder may still run.
"""

import logging
import os
from fnmatch import fnmatchcase

from detectron2.config import CfgNode, LazyConfig
from detectron2.modeling import ROI_HEADS_REGISTRY

from eql_d2.data.whole_files import UNFINISHED
from eql_d2.engine.checks import LOSS_KEY
from eql_d2.engine.ignored_keys import HEAD_KEY
from eql_d2.engine.settings import loss_of_heads, settings_of
from eql_d2.errors import InputError
from eql_d2.evaluation.run_folder import EVALUATION_CONFIG, TRAINING_CONFIG, flatten, read_config

logger = logging.getLogger(__name__)

# Without these the weights, the optimizer's state or the average would be of another model.
MUST_STAY = (
    "MODEL.META_ARCHITECTURE",
    "MODEL.BACKBONE.*",
    "MODEL.RESNETS.*",
    "MODEL.FPN.*",
    "MODEL.ANCHOR_GENERATOR.*",
    "MODEL.MASK_ON",
    "MODEL.*.NUM_CLASSES",
    "MODEL.ROI_*_HEAD.NAME",
    "MODEL.ROI_*_HEAD.NORM",
    "MODEL.ROI_*_HEAD.NUM_*",
    "MODEL.ROI_*_HEAD.*_DIM",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
    "MODEL.ROI_BOX_HEAD.CLS_SCALE",
    "MODEL.ROI_BOX_HEAD.CLS_NORM.*",
    "MODEL.FREEZE",
    "MODEL_EMA.ENABLED",
    "model.*_target_",
    "model.*num_classes",
    "optimizer._target_",
    "train.freeze",
    "train.model_ema.enabled",
)
# What a run began with, and a checkpoint goes on with.
OF_THE_CHECKPOINT = (
    "SEED",
    "MODEL.WEIGHTS",
    "MODEL.NEW_CLASSIFIER",
    "train.seed",
    "train.init_checkpoint",
    "train.new_classifier",
)
NOT_COMPARED = ("OUTPUT_DIR", "train.output_dir", "VERSION", HEAD_KEY, LOSS_KEY)


def write_run_config(cfg, evaluates: bool, resumes: bool) -> str:
    """Write the config into its run's folder; returns the path.

    Args:
        evaluates: whether no training is meant.
        resumes: whether a training goes on that was begun with the `config.yaml` that is there, which stays as it was
            where :func:`check_changes` fails.
    """
    folder = settings_of(cfg).output_dir
    path = os.path.join(folder, EVALUATION_CONFIG if evaluates else TRAINING_CONFIG)
    unfinished = f"{path}{UNFINISHED}"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if isinstance(cfg, CfgNode):
        with open(unfinished, "w", encoding="utf-8") as file:
            file.write(cfg.dump())
    else:
        LazyConfig.save(cfg, unfinished)
    try:
        if resumes and not evaluates and os.path.isfile(path) and os.path.isfile(unfinished):
            check_changes(flatten(config_before(path)), flatten(read_config(unfinished)), path)
    except InputError:
        os.unlink(unfinished)
        raise
    if os.path.isfile(unfinished):  # a LazyConfig with what YAML cannot hold is pickled beside, with Detectron2's line
        os.replace(unfinished, path)
    return path


def config_before(path: str) -> dict:
    """The config that the run was begun with."""
    try:
        return read_config(path)
    except InputError as error:
        raise InputError(
            f"{error}. --resume compares the settings with those in it: restore the file, or remove it to go on without"
        ) from error


def check_changes(before: dict[str, str], now: dict[str, str], path: str) -> None:
    """Say what is resumed with other settings; keys that only one of both has, as of another version, are left out."""
    check_loss(before, now, path)
    for key in sorted(before.keys() & now.keys()):
        if before[key] == now[key] or key in NOT_COMPARED:
            continue
        if matches(key, MUST_STAY):
            raise must_stay(key, before[key], now[key], path)
        if matches(key, OF_THE_CHECKPOINT):
            words = "--resume: %s is %s, but the run began with %s, and goes on from its checkpoint"
            logger.warning(words, key, shown(now[key]), shown(before[key]))
        else:
            logger.warning("--resume: from here on %s is %s, it was %s", key, shown(now[key]), shown(before[key]))


def check_loss(before: dict[str, str], now: dict[str, str], path: str) -> None:
    """The ROI heads and the classification loss of a YAML config, whichever of its two keys says so."""
    if HEAD_KEY not in before or HEAD_KEY not in now:
        return
    if kind_of_head(before) != kind_of_head(now):
        raise must_stay(HEAD_KEY, before[HEAD_KEY], now[HEAD_KEY], path)
    was, is_now = (loss_of_heads(config[HEAD_KEY], config.get(LOSS_KEY, "")) for config in (before, now))
    if was != is_now:
        raise must_stay(f"the classification loss ({LOSS_KEY})", was, is_now, path)


def kind_of_head(config: dict[str, str]) -> str:
    """Detectron2's class that the head derives from: those of one kind have the same parameters."""
    name = config[HEAD_KEY]
    classes = ROI_HEADS_REGISTRY.get(name).__mro__ if name in ROI_HEADS_REGISTRY else ()
    return next((c.__name__ for c in classes if c.__module__.startswith("detectron2.")), name)


def matches(key: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def must_stay(key: str, before: str, now: str, path: str) -> InputError:
    return InputError(
        f"{key} was {shown(before)} in the run that --resume goes on with, and is {shown(now)} now: resume with the "
        f"settings of {path}, or start a new run, without --resume and in another output folder (its weights may start "
        f"from this one's checkpoint)"
    )


def shown(value: str) -> str:
    return " ".join(value.split())[:80] or "''"
