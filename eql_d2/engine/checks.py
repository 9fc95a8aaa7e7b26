"""What a run is checked for before it starts, so that a mistake costs a line and not an evening."""

import os
import re
from collections.abc import Iterable
from contextlib import contextmanager

import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, PanopticFPN, SemanticSegmentor
from detectron2.utils.file_io import PathManager

from eql_d2.config import default_config
from eql_d2.data.image_errors import require_image_format
from eql_d2.engine.dataset_checks import check_datasets
from eql_d2.engine.ignored_keys import ARCHITECTURE_KEY, HEAD_KEY, check_no_ignored_key, leaves
from eql_d2.engine.settings import RunSettings, detecting_head, settings_of, value_of
from eql_d2.engine.unknown_values import names, unknown_value
from eql_d2.errors import InputError, did_you_mean, one_line
from eql_d2.evaluation.registry import EVALUATOR_REGISTRY
from eql_d2.losses import CLS_LOSS_REGISTRY
from eql_d2.losses.hyper_parameters import NODE

LOSS_KEY = f"{NODE}.NAME"
# ROI heads of projects on Detectron2, and what they are here.
HEADS_OF_OTHERS = {
    name: f"{whose}: here that is {HEAD_KEY} {ours} with {LOSS_KEY} {loss}"
    for name, whose, ours, loss in (
        ("CustomROIHeads", "of CenterNet2", "LongTailROIHeads", "FederatedLoss (its USE_SIGMOID_CE and USE_FED_LOSS)"),
        ("CustomCascadeROIHeads", "of CenterNet2", "LongTailCascadeROIHeads", "FederatedLoss"),
        ("DeticCascadeROIHeads", "of Detic", "LongTailCascadeROIHeads", "FederatedLoss, on detection data alone"),
        ("CustomRes5ROIHeads", "of Detic", "LongTailRes5ROIHeads", "FederatedLoss, on detection data alone"),
    )
}


@contextmanager
def explained_config_errors(cfg: CfgNode, source: str):
    """Say what is wrong with a config that cannot be merged into ``cfg``: for an unknown key, the nearest keys."""
    try:
        yield
    except (TypeError, AttributeError) as error:  # Detectron2 and yacs look into what is no section
        raise InputError(f"{source} is no config: sections of `KEY: value` are expected ({error})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{source} is not YAML, in UTF-8: {one_line(error)}") from error
    except RecursionError as error:
        raise InputError(
            f"{source} cannot be read to its end: its _BASE_ files name each other in a circle, or its values are "
            f"nested too deeply"
        ) from error
    except InputError:
        raise
    except ValueError as error:  # yacs; it shows all that a section holds
        pattern = r"^Type mismatch .* vs. <class '([\w.]+)'>\) with .*?(-?\d*)\) for config key: ([\w.]+)$"
        mismatch = re.search(pattern, str(error), re.DOTALL)
        if mismatch is None:
            raise
        came, number, key = mismatch.groups()
        default = value_of(cfg, key)
        if number and isinstance(default, float):
            raise InputError(
                f"{source}: {key} is {number}, a whole number; expected a float: write {number}.0"
            ) from error
        expected = "a section" if isinstance(default, CfgNode) else f"{type(default).__name__}, such as {default!r}"
        raise InputError(f"{source}: {key} is of type {came}; expected {expected}") from error
    except (KeyError, AssertionError) as error:
        unknown = re.search(r"Non-existent (?:config )?key: (.*)", str(error.args[0] if error.args else ""))
        if unknown is None:  # an odd number of words, a file that is not there
            raise InputError(f"{source}: {' '.join(map(str, error.args))}") from error
        key = unknown.group(1)
        raise InputError(
            f"there is no config key {key or repr(key)}"
            f"{did_you_mean(key, config_keys(cfg)) or ': see eql_d2/config.py'}"
        ) from error


def check_nothing_is_empty(cfg: CfgNode) -> None:
    """A key without a value (`NUM_CLASSES:` in YAML) is None, which yacs lets stand for any type."""
    for key, default in leaves(default_config()):
        if default is not None and value_of(cfg, key) is None:
            raise InputError(f"{key} has no value; expected {type(default).__name__}, such as {default!r}")


def config_keys(cfg: CfgNode, prefix: str = "") -> list[str]:
    """Full names of all keys, nodes included."""
    keys = []
    for name, value in cfg.items():
        keys.append(f"{prefix}{name}")
        if isinstance(value, CfgNode):
            keys += config_keys(value, f"{prefix}{name}.")
    return keys


def check_run(cfg, train: bool) -> None:
    """Check the names and the datasets of a config; cheap but for reading the annotations of the test sets.

    Args:
        cfg: of a YAML file or a LazyConfig.
        train: whether the training sets are needed, too.

    Raises:
        InputError: an unknown architecture, ROI head or loss, a key that the model would ignore, or see
            :func:`eql_d2.engine.dataset_checks.check_datasets` and :func:`check_fixed_ap`.
    """
    run = settings_of(cfg)
    if isinstance(cfg, CfgNode):
        check_names(cfg)
        check_augmentation(cfg)
        check_stuff_classes(cfg, (*run.train_sets * train, *run.test_sets))
        if train and not run.train_sets:
            raise InputError("DATASETS.TRAIN is empty: name a dataset to train on")
    if run.ema_decay is not None and not 0 < run.ema_decay < 1:
        raise InputError(f"{run.keys['ema_decay']} is {run.ema_decay}: expected a number in (0, 1), such as 0.999")
    check_datasets(run, train)
    for name in run.test_sets if isinstance(cfg, CfgNode) else ():  # a LazyConfig may have an evaluator of its own
        check_evaluator_type(name)
    check_fixed_ap(run)


def check_augmentation(cfg: CfgNode) -> None:
    """Detectron2 has test-time augmentation for models with ROI heads only."""
    if cfg.TEST.AUG.ENABLED and detecting_head(cfg) != "ROI_HEADS":
        raise InputError(
            f"TEST.AUG.ENABLED is True, but {ARCHITECTURE_KEY} '{cfg.MODEL.META_ARCHITECTURE}' has no ROI heads, which "
            f"test-time augmentation needs: set it to False"
        )


def check_stuff_classes(cfg: CfgNode, names: Iterable[str]) -> None:
    """Where the architecture segments, it must have as many classes of stuff as the datasets."""
    if not issubclass(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), PanopticFPN | SemanticSegmentor):
        return
    K = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    for name in names:
        stuff = MetadataCatalog.get(name).get("stuff_classes")
        if stuff is not None and len(stuff) != K:
            raise InputError(
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {K}, but '{name}' has {len(stuff)} classes of stuff: set "
                f"NUM_CLASSES {len(stuff)}, or name the right dataset"
            )


def check_fixed_ap(run: RunSettings) -> None:
    """Fixed AP needs more detections than the standard metrics, and our own evaluation."""
    key = run.keys["fixed_ap_detections"]
    limit, standard = run.fixed_ap_detections, run.detections_per_image
    if limit > 0 and not 0 <= standard <= limit:
        raise InputError(
            f"{key} is {limit}, fewer than {run.keys['detections_per_image']} {standard}: raise it, or set -1 for all "
            f"detections or 0 for no fixed AP"
        )
    if limit != 0 and run.lvis_backend != "eql_d2":
        raise InputError(
            f"{key} is {limit}, but {run.keys['lvis_backend']} '{run.lvis_backend}' has no fixed AP: set 0"
        )


def check_evaluator_type(name: str) -> str:
    """The evaluator that the dataset's metadata names, one of ``EVALUATOR_REGISTRY``, or an InputError."""
    kind = MetadataCatalog.get(name).get("evaluator_type")
    if kind not in EVALUATOR_REGISTRY:
        known = " or ".join(f"'{known}'" for known, _ in EVALUATOR_REGISTRY)
        raise InputError(
            f"dataset '{name}' of DATASETS.TEST has evaluator_type {kind!r} in its metadata; expected {known}: "
            f"MetadataCatalog.get('{name}').set(evaluator_type=...)"
        )
    return kind


def check_names(cfg: CfgNode) -> None:
    """Architecture, ROI head and loss must be registered, and the model one that reads what is set of ours."""
    for key, name, registry in (
        (ARCHITECTURE_KEY, cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY),
        (HEAD_KEY, cfg.MODEL.ROI_HEADS.NAME, ROI_HEADS_REGISTRY),
        (LOSS_KEY, cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME, CLS_LOSS_REGISTRY),
    ):
        if key == HEAD_KEY and name not in registry and name in HEADS_OF_OTHERS:
            raise InputError(f"{HEAD_KEY} is '{name}', {HEADS_OF_OTHERS[name]} (docs/coming_from.md)")
        if name not in registry and (key, name) != (LOSS_KEY, ""):  # the head says which loss
            raise unknown_value(key, name, names(registry))
    require_image_format(cfg.INPUT.FORMAT, "INPUT.FORMAT")
    check_no_ignored_key(cfg)


def check_first_stage(run: RunSettings) -> None:
    """With frozen parts a new run needs the weights that these keep."""
    weights = run.weights
    if run.freeze and not (weights and ("://" in weights or PathManager.isfile(weights))):
        raise InputError(
            f"{run.keys['freeze']} {list(run.freeze)} keeps parts of the model as a first stage of training left them, "
            f"but its weights are not here: {run.keys['weights']} is '{weights}'. Set it to the checkpoint of the "
            f"first stage, or train that first, with its own config and {run.keys['output_dir']} "
            f"'{os.path.dirname(weights) or 'output/first_stage'}'"
        )
