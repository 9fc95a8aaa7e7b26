"""From command-line arguments to a ready config; every tool with a `--config-file` starts here."""

import logging
from pathlib import Path

import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

import eql_d2.data.urls  # noqa: F401 (URLs in _BASE_ and MODEL.WEIGHTS stay inside of the cache)
from eql_d2.config import add_eql_config
from eql_d2.data.registration import register_datasets
from eql_d2.engine.checkpoint import require_writable
from eql_d2.engine.checks import check_nothing_is_empty, explained_config_errors
from eql_d2.engine.settings import settings_of, warn_of_unread_keys
from eql_d2.errors import InputError
from eql_d2.removed_configs import replacement

logger = logging.getLogger(__name__)


def default_config() -> CfgNode:
    """Detectron2's defaults and this package's keys."""
    cfg = get_cfg()
    add_eql_config(cfg)
    return cfg


def load_config(config_file: str, opts=()) -> CfgNode:
    """Detectron2's defaults, this package's keys, the YAML file, then `KEY VALUE` overrides; not frozen.

    YAML with Python objects in it is refused (Detectron2's default would run it). The datasets of ``DATASETS.REGISTER``
    are registered.

    Raises:
        InputError: a key that does not exist, with the nearest that do.
        InputError: a file that is no config, or a value of another type than its key's.
        InputError: a config of the package that was removed, with what replaced it.
    """
    cfg = default_config()
    if config_file:
        words = replacement(config_file)
        if words and not Path(config_file).is_file():
            raise InputError(f"{config_file} is no longer there; it was replaced by: {words}")
        with explained_config_errors(cfg, config_file):
            cfg.merge_from_file(config_file, allow_unsafe=False)
    with explained_config_errors(cfg, "the command line"):
        cfg.merge_from_list(list(opts))
    check_nothing_is_empty(cfg, default_config())
    register_datasets(cfg.DATASETS.REGISTER)
    return cfg


def use_available_device(cfg) -> None:
    """Set the device of a config of either kind to the CPU, and say so, where it names a GPU and there is none."""
    if torch.device(settings_of(cfg).device).type != "cuda" or torch.cuda.is_available():
        return
    if isinstance(cfg, DictConfig):
        cfg.train.device = "cpu"
    else:
        cfg.MODEL.DEVICE = "cpu"
    logger.warning("no CUDA device is available: running on the CPU")


def load_lazy_config(config_file: str, opts=()) -> DictConfig:
    """A LazyConfig with `path.key=value` overrides. Its Python code runs; a `config.yaml` of a run may call any, too.

    Raises:
        InputError: a file that is no LazyConfig for training, or an override that is none.
    """
    cfg = LazyConfig.load(config_file)
    missing = [part for part in ("model", "optimizer", "lr_multiplier", "dataloader", "train") if part not in cfg]
    if missing:
        raise InputError(
            f"{config_file} is no LazyConfig to train by: it lacks {', '.join(missing)}. See docs/modern.md, or "
            f"Detectron2's common/train.py"
        )
    wrong = [opt for opt in opts if "=" not in opt]
    if wrong:
        raise InputError(f"{wrong[0]} is no override of a LazyConfig: expected path.key=value, such as train.seed=1")
    return LazyConfig.apply_overrides(cfg, list(opts))


def setup(args):
    """The config of a run, with Detectron2's logger, seed and `config.yaml` set up.

    Args:
        args: what ``default_argument_parser`` parses, where ``config_file`` is YAML,
            or a LazyConfig if it ends in .py.

    Returns:
        a frozen CfgNode, or a DictConfig.
    """
    is_lazy = args.config_file.endswith(".py")
    cfg = (load_lazy_config if is_lazy else load_config)(args.config_file, args.opts)
    output_dir = settings_of(cfg).output_dir
    if comm.is_main_process():
        require_writable(output_dir)
    setup_logger(output_dir, distributed_rank=comm.get_rank(), name="eql_d2")
    use_available_device(cfg)
    if is_lazy:
        warn_of_unread_keys(cfg)
    else:
        cfg.freeze()
    default_setup(cfg, args)
    return cfg
