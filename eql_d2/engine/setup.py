"""From command-line arguments to a ready config; every tool with a `--config-file` starts here."""

import logging

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from eql_d2.config import add_eql_config
from eql_d2.data.registration import register_datasets
from eql_d2.engine.checkpoint import require_writable
from eql_d2.engine.checks import check_nothing_is_empty, explained_config_errors

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
    """
    cfg = default_config()
    if config_file:
        with explained_config_errors(cfg, config_file):
            cfg.merge_from_file(config_file, allow_unsafe=False)
    with explained_config_errors(cfg, "the command line"):
        cfg.merge_from_list(list(opts))
    check_nothing_is_empty(cfg, default_config())
    register_datasets(cfg.DATASETS.REGISTER)
    return cfg


def use_available_device(cfg: CfgNode) -> None:
    """Set ``MODEL.DEVICE`` to the CPU, and say so, where it names a GPU and there is none."""
    if torch.device(cfg.MODEL.DEVICE).type == "cuda" and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
        logger.warning("no CUDA device is available: running on the CPU")


def setup(args) -> CfgNode:
    """The frozen config of a run, with Detectron2's logger, seed and `config.yaml` set up.

    Args:
        args: what ``default_argument_parser`` parses.
    """
    cfg = load_config(args.config_file, args.opts)
    if comm.is_main_process():
        require_writable(cfg.OUTPUT_DIR)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="eql_d2")
    use_available_device(cfg)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg
