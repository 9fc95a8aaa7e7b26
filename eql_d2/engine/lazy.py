"""Training from a LazyConfig: what Detectron2's tools/lazyconfig_train_net.py does, for this package's models.

A config has ``model``, ``optimizer``, ``lr_multiplier``, ``dataloader`` and ``train``, as Detectron2's own.
"""

import logging

import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.engine import default_setup, default_writers, hooks
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from eql_d2.engine.checkpoint import LongTailCheckpointer, require_writable
from eql_d2.engine.interruption import Interruption, interruptible
from eql_d2.engine.launch import distribute
from eql_d2.engine.resumption import Resumption
from eql_d2.engine.train_step import TrainStep, micro_batch_size, mixed_precision
from eql_d2.modeling.image_labels import tell_image_labels

logger = logging.getLogger(__name__)


def setup_lazy(args):
    """The config of a run, with Detectron2's logger and seed set up; on the CPU where there is no GPU."""
    cfg = LazyConfig.apply_overrides(LazyConfig.load(args.config_file), args.opts)
    if comm.is_main_process():
        require_writable(cfg.train.output_dir)
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name="eql_d2")
    if torch.device(cfg.train.device).type == "cuda" and not torch.cuda.is_available():
        cfg.train.device = "cpu"
        logger.warning("no CUDA device is available: running on the CPU")
    default_setup(cfg, args)
    return cfg


def build_lazy_model(cfg):
    """The model on its device, for one process or as a DistributedDataParallel."""
    model = tell_image_labels(instantiate(cfg.model)).to(cfg.train.device)
    return distribute(model, **cfg.train.ddp)


def test_lazy(cfg, model) -> dict:
    """Evaluate with ``dataloader.test`` and ``dataloader.evaluator``; SIGTERM and SIGINT end it at once."""
    evaluator = instantiate(cfg.dataloader.evaluator)
    with interruptible():
        results = inference_on_dataset(model, instantiate(cfg.dataloader.test), evaluator)
    if comm.is_main_process():
        print_csv_format(results)
    return results


def build_lazy_trainer(cfg, resume: bool):
    """The trainer with its hooks and its weights loaded, the iteration to start from, and the context to train in.

    Beside Detectron2's keys it reads ``train.accumulate_steps`` (1) and ``train.amp.precision`` ("bf16"), which are
    ``SOLVER.ACCUMULATE_STEPS`` and ``SOLVER.AMP.PRECISION`` of a YAML. Resuming equals going on, as with a YAML, where
    ``dataloader.train`` is a :class:`TrainLoader`.
    """
    amp, accumulate_steps = cfg.train.amp, cfg.train.get("accumulate_steps", 1)
    precision = mixed_precision(amp.get("precision", "bf16"), cfg.train.device) if amp.enabled else None
    loader = cfg.dataloader.train
    loader.total_batch_size = micro_batch_size(loader.total_batch_size, accumulate_steps)
    model = build_lazy_model(cfg)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    trainer = TrainStep(model, instantiate(loader), optimizer, precision=precision, accumulate_steps=accumulate_steps)
    checkpointer = LongTailCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    before = [hooks.IterationTimer(), hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier))]
    if comm.is_main_process():
        before.append(hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer))
    interruption = Interruption(checkpointer)
    behind = [hooks.EvalHook(cfg.train.eval_period, lambda: test_lazy(cfg, model))]
    if comm.is_main_process():
        writers = default_writers(cfg.train.output_dir, cfg.train.max_iter)
        behind.append(hooks.PeriodicWriter(writers, period=cfg.train.log_period))
    resumption = Resumption(trainer.data_loader, cfg.train.output_dir, behind, cfg.train.log_period)
    trainer.register_hooks([resumption, *before, interruption, *behind])
    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=resume)
    resumption.resumes = resume
    start = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    return trainer, start, interruption
