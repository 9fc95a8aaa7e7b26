"""From command-line arguments to a ready config; every tool with a `--config-file` starts here."""

import logging
import os

import torch
from detectron2.config import CfgNode, LazyConfig
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

import eql_d2.data.urls  # noqa: F401 (URLs in _BASE_ and MODEL.WEIGHTS stay inside of the cache)
from eql_d2.config import default_config
from eql_d2.config_files import TRAINABLE, config_path
from eql_d2.data.registration import register_datasets
from eql_d2.engine.checkpoint import require_writable
from eql_d2.engine.checks import check_nothing_is_empty, explained_config_errors
from eql_d2.engine.folder_lock import claim_folder
from eql_d2.engine.output_errors import guard_the_log
from eql_d2.engine.run_config import write_run_config
from eql_d2.engine.settings import settings_of, warn_of_unread_keys
from eql_d2.errors import InputError

logger = logging.getLogger(__name__)


def load_config(config_file: str, opts=()) -> CfgNode:
    """Detectron2's defaults, this package's keys, the YAML file, then `KEY VALUE` overrides; not frozen.

    The file may be a config of the package, by its name in `eql-d2 configs list`. YAML with Python objects in it is
    refused (Detectron2's default would run it). The datasets of ``DATASETS.REGISTER`` are registered.

    Raises:
        InputError: a key that does not exist, with the nearest that do.
        InputError: a file that is no config, or a value of another type than its key's.
        InputError: no such file, with the configs of the package whose names are nearest, or what replaced one.
    """
    cfg = default_config()
    if config_file:
        config_file = config_path(str(config_file))
        with explained_config_errors(cfg, config_file):
            cfg.merge_from_file(config_file, allow_unsafe=False)
    if len(opts) % 2:  # yacs asserts it, which `python -O` leaves out
        raise InputError(f"the command line: overrides are pairs of KEY VALUE, and {opts[-1]!r} has no value")
    with explained_config_errors(cfg, "the command line"):
        cfg.merge_from_list(list(opts))
    check_nothing_is_empty(cfg)
    register_datasets(cfg.DATASETS.REGISTER)
    return cfg


def use_available_device(cfg) -> None:
    """Set the device of a config of either kind to the CPU, and say so, where it names a GPU and there is none."""
    device = settings_of(cfg).device
    try:
        is_cuda = torch.device(device).type == "cuda"
    except RuntimeError as error:
        raise InputError(f"MODEL.DEVICE (in a LazyConfig train.device) is {device!r}: expected cuda or cpu") from error
    if not is_cuda or torch.cuda.is_available():
        return
    if isinstance(cfg, DictConfig):
        cfg.train.device = "cpu"
    else:
        cfg.MODEL.DEVICE = "cpu"
    logger.warning("no CUDA device is available: running on the CPU")


def load_lazy_config(config_file: str, opts=()) -> DictConfig:
    """A LazyConfig with `path.key=value` overrides. Its Python code runs; a run's `config.yaml` may call any, too."""
    cfg = LazyConfig.load(config_file)
    missing = [part for part in TRAINABLE if part not in cfg]
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
    """The config of a run, with Detectron2's logger, seed and `config.yaml` set up, and the folder claimed to train in.

    Args:
        args: what ``default_argument_parser`` parses, where ``config_file`` is YAML,
            or a LazyConfig if it ends in .py.

    Returns:
        a frozen CfgNode, or a DictConfig.

    Raises:
        InputError: a config that is none; a folder that cannot be written, or that another training writes to; a
            resumed run with a setting that must stay (:mod:`eql_d2.engine.run_config`).
    """
    if behind := [word for word in args.opts if str(word).startswith("--")]:
        raise InputError(
            f"{behind[0]} stands behind the overrides, which end the command line: put it in front of them"
        )
    is_lazy = args.config_file.endswith(".py")
    cfg = (load_lazy_config if is_lazy else load_config)(args.config_file, args.opts)
    output_dir = settings_of(cfg).output_dir
    if comm.is_main_process():
        require_writable(output_dir)
        if not args.eval_only:
            claim_folder(output_dir)
    setup_logger(output_dir, distributed_rank=comm.get_rank(), name="eql_d2")
    use_available_device(cfg)
    if is_lazy:
        warn_of_unread_keys(cfg)
    else:
        cfg.freeze()
    introduce(cfg, args)
    return cfg


def introduce(cfg, args) -> None:
    """Detectron2's ``default_setup``, but for the config, which is written by :func:`write_run_config`."""
    run, rank = settings_of(cfg), comm.get_rank()
    setup_logger(run.output_dir, distributed_rank=rank, name="fvcore")
    log = setup_logger(run.output_dir, distributed_rank=rank)
    guard_the_log("eql_d2", "fvcore", "detectron2")
    log.info("Rank of current process: %d. World size: %d", rank, comm.get_world_size())
    log.info("Environment info:\n%s", collect_env_info())
    log.info(describe_threads())
    log.info("Command line arguments: %s", args)
    if comm.is_main_process():
        resumes = args.resume and os.path.isfile(os.path.join(run.output_dir, "last_checkpoint"))
        path = write_run_config(cfg, evaluates=args.eval_only, resumes=resumes)
        if isinstance(cfg, CfgNode):
            log.info("Running with full config:\n%s", cfg.dump())
        log.info("Full config saved to %s", path)
    seed_all_rng(None if run.seed is None else run.seed + rank)
    if not args.eval_only:  # it takes longer than it saves on the few images of a test set
        torch.backends.cudnn.benchmark = run.cudnn_benchmark


def describe_threads() -> str:
    """How many threads compute on the CPU, and what helps where the cores have other work (docs/speed.md)."""
    threads, cores, load = torch.get_num_threads(), os.cpu_count() or 1, os.getloadavg()[0]
    words = f"CPU threads: {threads} (OMP_NUM_THREADS), GOMP_SPINCOUNT {os.getenv('GOMP_SPINCOUNT', 'not set')}"
    if threads > 1 and load > cores - threads + 0.5:
        words += f". A load of {load:.1f} on {cores} cores: a small model may train faster with OMP_NUM_THREADS=1"
    return words
