"""Detectron2's DefaultTrainer for this package's models and datasets."""

import logging
import os
import re
import weakref
from collections import OrderedDict

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.engine import DefaultTrainer, TrainerBase, hooks
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from fvcore.nn.precise_bn import get_bn_modules

from eql_d2.data.image_errors import ExplainedMapper
from eql_d2.data.loading import load_training_dicts
from eql_d2.data.train_loader import TrainLoader
from eql_d2.engine.checkpoint import LongTailCheckpointer
from eql_d2.engine.checks import check_first_stage, check_run, explained_dataset_errors
from eql_d2.engine.evaluators import build_evaluator, detections_for_fixed_ap
from eql_d2.engine.gradient_balance import build_gradient_balance
from eql_d2.engine.interruption import Interruption, interruptible
from eql_d2.engine.launch import distribute
from eql_d2.engine.optimizer import classifier_lr_factor
from eql_d2.engine.resumption import PreciseBN, Resumption
from eql_d2.engine.train_step import (
    TrainStep,
    drop_evaluation_of_a_failure,
    mixed_precision,
    with_micro_batches,
)
from eql_d2.errors import InputError
from eql_d2.losses import ClassificationLoss
from eql_d2.modeling.freeze import freeze
from eql_d2.modeling.image_labels import tell_image_labels
from eql_d2.modeling.test_time_augmentation import LongTailRCNNWithTTA

logger = logging.getLogger(__name__)

WRITE_PERIOD = 20  # iterations between lines of the log and of metrics.json, as in Detectron2


class Trainer(DefaultTrainer):
    """Trains and evaluates: LVIS or COCO metrics by the dataset's metadata, on GPUs or the CPU."""

    def __init__(self, cfg):
        """As ``DefaultTrainer.__init__``, which fixes the checkpointer and CUDA device ids and so is not called.

        Raises:
            InputError: a loss that needs class frequencies to train and has none, a batch that cannot be shared by
                the processes, a precision that the device has not, or see :func:`eql_d2.engine.checks.check_run`.
        """
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
            setup_logger(name="eql_d2")
        check_run(cfg, train=True)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        loader_cfg = with_micro_batches(cfg)
        amp = cfg.SOLVER.AMP
        precision = mixed_precision(amp.PRECISION, cfg.MODEL.DEVICE) if amp.ENABLED else None
        model = self.build_model(cfg)
        for module in model.modules():
            if isinstance(module, ClassificationLoss):
                module.require_frequencies()
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(loader_cfg)
        model = distribute(model, broadcast_buffers=False)
        self._trainer = TrainStep(
            model,
            data_loader,
            optimizer,
            precision=precision,
            accumulate_steps=cfg.SOLVER.ACCUMULATE_STEPS,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = LongTailCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            new_classifier=cfg.MODEL.NEW_CLASSIFIER,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume=True):
        """As Detectron2's.

        Raises:
            InputError: the weights are not there; see :func:`eql_d2.engine.checks.check_first_stage` too.
        """
        if not (resume and self.checkpointer.has_checkpoint()):
            check_first_stage(self.cfg)
        self._resumption.resumes = resume
        super().resume_or_load(resume)

    def train(self):
        """Run training; returns the results of the last evaluation, or {} if there was none.

        Raises:
            Interrupted: (a SystemExit) by SIGTERM or SIGINT; what was trained is saved.
            DataError: an image or anything else of the next batch cannot be read; what was trained is saved.
        """
        with self._interruption.handled():
            super().train()
        return getattr(self, "_last_eval_results", None) or {}

    def run_step(self):
        """One iteration.

        Raises:
            Diverged: a loss that is NaN or infinite, or overflows in a row, see :class:`TrainStep`; the
                weights and the checkpoints are as they were before the iteration.
        """
        try:
            super().run_step()
        except FloatingPointError as error:
            reason = re.sub(r"np\.float64\((.*?)\)", r"\1", " ".join(str(error).split()))
            raise Diverged(
                f"training stopped at iteration {self.iter}: {reason} (classification loss: {self._loss_names()}). "
                f"Checkpoints made before are in {self.cfg.OUTPUT_DIR}. Lower SOLVER.BASE_LR, warm up longer, or clip "
                f"gradients (SOLVER.CLIP_GRADIENTS)"
            ) from error

    def after_train(self):
        """Detectron2's, without an evaluation where training has failed."""
        drop_evaluation_of_a_failure(self)
        super().after_train()

    def _loss_names(self) -> str:
        losses = (m for m in self.model.modules() if isinstance(m, ClassificationLoss))
        return ", ".join(sorted({type(loss).__name__ for loss in losses})) or "Detectron2's own"

    def build_hooks(self):
        """Detectron2's, with interruption and exact resumption.

        And the gradient balance, by ``GRADIENT_BALANCE_PERIOD``, and test-time augmentation if ``TEST.AUG.ENABLED``.
        """
        cfg = self.cfg
        balance = build_gradient_balance(cfg, self.model)  # before the checkpoint, which has its sums; None is no hook
        before = [hooks.IterationTimer(), hooks.LRScheduler(), balance]
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            before.append(self._build_precise_bn())
        if comm.is_main_process():
            before.append(hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
        self._interruption = Interruption(self.checkpointer)
        # If these fail or are interrupted there is a checkpoint.
        behind = [hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._test_in_training)]
        if cfg.TEST.AUG.ENABLED:
            behind.append(hooks.EvalHook(0, self._test_with_tta_after_training))
        if comm.is_main_process():
            behind.append(hooks.PeriodicWriter(self.build_writers(), period=WRITE_PERIOD))
        self._resumption = Resumption(self.data_loader, cfg.OUTPUT_DIR, behind, WRITE_PERIOD)
        return [self._resumption, *before, self._interruption, *behind]

    def _build_precise_bn(self):
        """It runs as often as evaluation, on a stream of images of its own, read in this process to save memory."""
        cfg = with_micro_batches(self.cfg)
        cfg.DATALOADER.NUM_WORKERS = 0
        loader = self.build_train_loader(cfg)
        return PreciseBN(cfg.TEST.EVAL_PERIOD, self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER)

    def _test_in_training(self):
        self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def _test_with_tta_after_training(self):
        results = self.test_with_tta(self.cfg, self.model)
        self._last_eval_results = merge_results(self._last_eval_results, results)
        return results

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """Detectron2's, with the detections that fixed AP needs if ``FIXED_AP_DETECTIONS_PER_IMAGE`` asks for it.

        SIGTERM and SIGINT end it at once.
        """
        with interruptible(), detections_for_fixed_ap(cfg, model):
            return super().test(cfg, model, evaluators)

    @classmethod
    def test_with_tta(cls, cfg, model):
        """Evaluate with test-time augmentation (``TEST.AUG``); tasks are called `bbox_TTA`, ...

        Returns:
            results as of :meth:`test`.
        """
        logger.info("Running inference with test-time augmentation ...")
        cfg = cfg.clone()
        cfg.defrost()
        cfg.TEST.FIXED_AP_DETECTIONS_PER_IMAGE = 0  # the merged detections are cut to the standard limit
        evaluators = [cls.build_evaluator(cfg, name, folder="inference_TTA") for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, LongTailRCNNWithTTA(cfg, model), evaluators)
        if len(cfg.DATASETS.TEST) > 1:
            return OrderedDict((name, name_tta(tasks)) for name, tasks in results.items())
        return name_tta(results)

    @classmethod
    def evaluate(cls, cfg, model):
        """:meth:`test`, and :meth:`test_with_tta` too if ``TEST.AUG.ENABLED``."""
        results = cls.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results = merge_results(results, cls.test_with_tta(cfg, model))
        return results

    @staticmethod
    def auto_scale_workers(cfg, num_workers: int):
        """Detectron2's, which also scales the iterations at which a loss changes."""
        scaled = DefaultTrainer.auto_scale_workers(cfg, num_workers)
        factor = scaled.SOLVER.MAX_ITER / cfg.SOLVER.MAX_ITER
        if factor != 1:
            scaled.defrost()
            scale_iterations(scaled.MODEL.ROI_BOX_HEAD.CLS_LOSS, factor)
            scaled.freeze()
        return scaled

    @classmethod
    def build_model(cls, cfg):
        """Detectron2's, with the parts of ``MODEL.FREEZE`` frozen, and told of image labels if its losses want them."""
        return tell_image_labels(freeze(super().build_model(cfg), cfg.MODEL.FREEZE))

    @classmethod
    def build_train_loader(cls, cfg):
        """A :class:`TrainLoader` of ``DATASETS.TRAIN``.

        Raises:
            InputError: a broken annotation file, named; or one without the image labels that the config wants.
        """
        with explained_dataset_errors(cfg.DATASETS.TRAIN):
            return TrainLoader(
                cfg,
                dataset=load_training_dicts(cfg),
                mapper=ExplainedMapper(DatasetMapper(cfg, True)),
            )

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        """Detectron2's loader; a broken annotation file is an InputError that names it."""
        with explained_dataset_errors([dataset_name]):
            return super().build_test_loader(cfg, dataset_name)

    @classmethod
    def build_optimizer(cls, cfg, model):
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

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, folder="inference"):
        """The evaluator that the dataset's ``evaluator_type`` names; it writes to ``folder`` of the output.

        Raises:
            InputError: a type other than "lvis" and "coco", or a dataset of another number of categories.
        """
        output_dir = os.path.join(cfg.OUTPUT_DIR, folder, dataset_name)
        return build_evaluator(cfg, dataset_name, output_dir)


class Diverged(InputError, FloatingPointError):
    """Training cannot go on from weights that gave a loss of NaN or infinity."""


def name_tta(tasks):
    """{task: scores} -> {task_TTA: scores}; None, as on all but the main process, stays."""
    return tasks and OrderedDict((f"{task}_TTA", scores) for task, scores in tasks.items())


def merge_results(results, more):
    """Both results of an evaluation, task by task, of one dataset or of several."""
    merged = OrderedDict(results or {})
    for name, value in (more or {}).items():
        of_dataset = isinstance(merged.get(name), dict) and isinstance(value, dict)
        merged[name] = {**merged[name], **value} if of_dataset else value
    return merged


def scale_iterations(node: CfgNode, factor: float) -> None:
    """Multiply every number of iterations (`START_ITER`, `REWEIGHT_ITER`) below ``node``, in place."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            scale_iterations(value, factor)
        elif key.endswith("_ITER") and value:
            node[key] = round(value * factor)
