"""Detectron2's DefaultTrainer for this package's models and datasets."""

import copy
import logging
import os
import re
import weakref
from collections import OrderedDict

import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
    hooks,
)
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from eql_d2.data import ClassFrequencies
from eql_d2.engine.checkpoint import LongTailCheckpointer
from eql_d2.engine.checks import (
    check_evaluator_type,
    check_num_classes,
    check_run,
    explained_dataset_errors,
)
from eql_d2.engine.gradient_balance import build_gradient_balance
from eql_d2.engine.lazy import classifier_lr_factor
from eql_d2.evaluation.lvis_evaluation import LVISEvaluator
from eql_d2.evaluation.picture import PredictionPicture
from eql_d2.losses import ClassificationLoss
from eql_d2.modeling.test_time_augmentation import LongTailRCNNWithTTA

logger = logging.getLogger(__name__)

PICTURE = "ground_truth_and_predictions.png"


class Trainer(DefaultTrainer):
    """Trains and evaluates: LVIS or COCO metrics by the dataset's metadata, on GPUs or the CPU."""

    def __init__(self, cfg):
        """As ``DefaultTrainer.__init__``, which fixes the checkpointer and CUDA device ids and so is not called.

        Raises:
            ValueError: a loss that needs class frequencies to train and has none, or see
                :func:`eql_d2.engine.checks.check_run`.
        """
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
            setup_logger(name="eql_d2")
        check_run(cfg, train=True)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        for module in model.modules():
            if isinstance(module, ClassificationLoss):
                module.require_frequencies()
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        devices = {} if torch.device(cfg.MODEL.DEVICE).type == "cuda" else {"device_ids": None}
        model = create_ddp_model(model, broadcast_buffers=False, **devices)
        step = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = step(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = LongTailCheckpointer(
            model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume=True):
        """As Detectron2's. Without resuming, losses start from their own state, not from that in ``MODEL.WEIGHTS``."""
        losses = [m for m in self.model.modules() if isinstance(m, ClassificationLoss)]
        fresh = [copy.deepcopy(loss.state_dict()) for loss in losses]
        super().resume_or_load(resume)
        if self.start_iter == 0:
            for loss, state in zip(losses, fresh):
                loss.load_state_dict(state)

    def train(self):
        """Run training; returns the results of the last evaluation, or {} if there was none."""
        super().train()
        return getattr(self, "_last_eval_results", None) or {}

    def run_step(self):
        """One iteration.

        Raises:
            FloatingPointError: a loss that is NaN or infinite; the weights and the checkpoints are as they were
                before the iteration.
        """
        try:
            super().run_step()
        except FloatingPointError as error:
            reason = re.sub(r"np\.float64\((.*?)\)", r"\1", " ".join(str(error).split()))
            raise FloatingPointError(
                f"training stopped at iteration {self.iter}: {reason} (classification loss: {self._loss_names()}). "
                f"Checkpoints made before are in {self.cfg.OUTPUT_DIR}. Lower SOLVER.BASE_LR, warm up longer, or clip "
                f"gradients (SOLVER.CLIP_GRADIENTS)"
            ) from error

    def _loss_names(self) -> str:
        losses = (m for m in self.model.modules() if isinstance(m, ClassificationLoss))
        return ", ".join(sorted({type(loss).__name__ for loss in losses})) or "Detectron2's own"

    def build_hooks(self):
        """Detectron2's, the gradient balance, and an evaluation with test-time augmentation after training.

        By ``GRADIENT_BALANCE_PERIOD`` and ``TEST.AUG.ENABLED``.
        """
        built = super().build_hooks()
        built.insert(1, build_gradient_balance(self.cfg, self.model))  # a None is no hook
        if self.cfg.TEST.AUG.ENABLED:
            before_writers = len(built) - comm.is_main_process()
            built.insert(before_writers, hooks.EvalHook(0, self._test_with_tta_after_training))
        return built

    def _test_with_tta_after_training(self):
        results = self.test_with_tta(self.cfg, self.model)
        self._last_eval_results = merge_results(self._last_eval_results, results)
        return results

    @classmethod
    def test_with_tta(cls, cfg, model):
        """Evaluate with test-time augmentation (``TEST.AUG``); tasks are called `bbox_TTA`, ...

        Returns:
            results as of :meth:`test`.
        """
        logger.info("Running inference with test-time augmentation ...")
        evaluators = [
            cls.build_evaluator(cfg, name, folder="inference_TTA") for name in cfg.DATASETS.TEST
        ]
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

    @classmethod
    def build_train_loader(cls, cfg):
        """Detectron2's loader; a broken annotation file is a ValueError that names it."""
        with explained_dataset_errors(cfg.DATASETS.TRAIN):
            return super().build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        """Detectron2's loader; a broken annotation file is a ValueError that names it."""
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
            ValueError: a type other than "lvis" and "coco", or a dataset of another number of categories.
        """
        output_dir = os.path.join(cfg.OUTPUT_DIR, folder, dataset_name)
        metadata = MetadataCatalog.get(dataset_name)
        if metadata.get("thing_classes") is not None:
            check_num_classes(cfg, "DATASETS.TEST", dataset_name, len(metadata.thing_classes))
        if check_evaluator_type(dataset_name) == "lvis":
            evaluator = LVISEvaluator(
                dataset_name,
                output_dir=output_dir,
                max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
                backend=cfg.TEST.LVIS_BACKEND,
            )
        else:
            evaluator = COCOEvaluator(dataset_name, output_dir=output_dir, use_fast_impl=False)
        try:
            frequencies = ClassFrequencies.from_config(cfg)
        except ValueError as error:  # evaluation itself needs no counts
            logger.warning("no picture of the predictions: %s", error)
            return evaluator
        picture = PredictionPicture(
            dataset_name, os.path.join(output_dir, PICTURE), frequencies
        )
        return DatasetEvaluators([evaluator, picture])


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
