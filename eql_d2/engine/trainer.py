"""Detectron2's DefaultTrainer for this package's models and datasets."""

import logging
import os
import re
import weakref
from collections import OrderedDict
from contextlib import contextmanager, nullcontext

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, TrainerBase, default_writers, hooks
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format, verify_results
from detectron2.utils import comm
from detectron2.utils.events import JSONWriter, TensorboardXWriter
from detectron2.utils.logger import setup_logger
from fvcore.nn.precise_bn import get_bn_modules
from omegaconf import DictConfig

from eql_d2.data.json_files import without_garbage_collection
from eql_d2.data.loading import give_memory_back
from eql_d2.data.train_loader import end_workers_that_cannot_send
from eql_d2.engine import lazy_parts, yaml_parts
from eql_d2.engine.checkpoint import LongTailCheckpointer
from eql_d2.engine.checks import check_first_stage, check_run
from eql_d2.engine.dataset_checks import explained_dataset_errors
from eql_d2.engine.ema import ModelEMA, require_averaging
from eql_d2.engine.evaluators import build_evaluator, detections_for_fixed_ap
from eql_d2.engine.gradient_balance import build_gradient_balance
from eql_d2.engine.ignored_keys import check_model_reads
from eql_d2.engine.interruption import Interruption, interruptible
from eql_d2.engine.launch import distribute
from eql_d2.engine.output_errors import NamedWriter, explained_write_errors
from eql_d2.engine.resumption import PreciseBN, Resumption
from eql_d2.engine.settings import settings_of
from eql_d2.engine.train_step import TrainStep, drop_evaluation_of_a_failure, last_line, mixed_precision
from eql_d2.errors import InputError, one_line
from eql_d2.losses import losses_of
from eql_d2.modeling.freeze import freeze
from eql_d2.modeling.image_labels import tell_image_labels
from eql_d2.modeling.tta import LongTailRCNNWithTTA

logger = logging.getLogger(__name__)


def parts_of(cfg):
    """The module that builds the parts of a run of this kind of config."""
    return lazy_parts if isinstance(cfg, DictConfig) else yaml_parts


class Trainer(DefaultTrainer):
    """Trains and evaluates: LVIS or COCO metrics by the dataset's metadata, on GPUs or the CPU.

    ``cfg`` is the CfgNode of a YAML file or the DictConfig of a LazyConfig, here and in all class methods: the two
    differ in how the parts are built, and in nothing else.
    """

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
        run = self.settings = settings_of(cfg)
        precision = mixed_precision(run.amp, run.device) if run.amp else None
        model = self.build_model(cfg)
        check_model_reads(cfg, model)
        for loss in losses_of(model):
            loss.require_frequencies()
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = distribute(model, **run.ddp)
        self._trainer = TrainStep(
            model, data_loader, optimizer, precision=precision, accumulate_steps=run.accumulate_steps
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self._ema = None if run.ema_decay is None else ModelEMA(model, run.ema_decay)
        self.checkpointer = LongTailCheckpointer(
            model,
            run.output_dir,
            new_classifier=run.new_classifier,
            weights_to_save=self._ema and self._ema.averages,
            thing_classes=classes_of(run.train_sets),
            trainer=weakref.proxy(self),
        )
        self._has_state = False  # whether a checkpoint had any for this trainer
        self.start_iter = 0
        self.max_iter = run.max_iter
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume=True):
        """As Detectron2's.

        Raises:
            InputError: the weights are not there; see :func:`eql_d2.engine.checks.check_first_stage` too.
        """
        if not (resume and self.checkpointer.has_checkpoint()):
            check_first_stage(self.settings)
        self._resumption.resumes = resume
        rest = self.checkpointer.resume_or_load(self.settings.weights, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            if not self._has_state:
                self._take_iteration(rest.get("iteration"))
            self.start_iter = self.iter + 1  # the checkpoint has the iteration that was finished

    def _take_iteration(self, iteration) -> None:
        """Go on after this one with a new optimizer: all that can be had of a checkpoint of another trainer."""
        path = self.checkpointer.get_checkpoint_file()
        if not isinstance(iteration, int) or iteration < 0:
            raise InputError(
                f"{path} has weights, but neither the state of a trainer nor an iteration to resume from: start a new "
                f"run from them, without --resume, by {self.settings.keys['weights']} {path} and another output folder"
            )
        logger.warning(
            "%s has no state of this trainer: training goes on after its iteration %d, with an optimizer that starts "
            "anew",
            path,
            iteration,
        )
        self.iter, self.scheduler.last_epoch = iteration, iteration + 1
        set_learning_rates(self.optimizer, self.scheduler)

    def load_state_dict(self, state_dict):
        """As Detectron2's; also that of a run of Detectron2's LazyConfig tool, whose trainer has no step within.

        The optimizer's settings (learning rate, momentum, weight decay) are the config's, also where it has changed.

        Raises:
            InputError: an optimizer of other parameters.
        """
        require_averaging(state_dict.get("hooks", {}), self._ema is not None)
        built = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        try:
            super().load_state_dict(state_dict if "_trainer" in state_dict else {**state_dict, "_trainer": state_dict})
        except ValueError as error:  # torch's, of groups of parameters
            raise InputError(
                f"the optimizer's state in the checkpoint does not fit ({one_line(error)}): resume with the settings "
                f"of the run's config.yaml"
            ) from error
        for group, of_config in zip(self.optimizer.param_groups, built, strict=True):
            group.update(of_config)
        set_learning_rates(self.optimizer, self.scheduler)
        self._has_state = True

    def train(self):
        """Run training; returns the results of the last evaluation, or {} if there was none.

        Raises:
            Interrupted: (a SystemExit) by SIGTERM or SIGINT; what was trained is saved.
            DataError: an image or anything else of the next batch cannot be read; what was trained is saved.
            OutputError: a full disk.
        """
        with explained_write_errors(self.settings.output_dir, self.checkpointer), self._interruption.handled():
            TrainerBase.train(self, self.start_iter, self.max_iter)
        if self._ema is not None:
            self._ema.apply()  # all is saved, and this is the model that was evaluated
        results = getattr(self, "_last_eval_results", None) or {}
        if self.settings.expected_results and comm.is_main_process():
            verify_results(self.cfg, results)
        return results

    def make_final_checkpoint_good(self) -> None:
        """Write ``model_final.pth`` where a run was stopped between its last iteration and that file."""
        final = os.path.join(self.settings.output_dir, "model_final.pth")
        if self.start_iter > self.max_iter:
            logger.warning(
                "nothing to train: the checkpoint is of iteration %d, and the run ends at %d. To train on, raise %s",
                self.start_iter,
                self.max_iter,
                self.settings.keys["max_iter"],
            )
        elif self.start_iter == self.max_iter and not os.path.exists(final):
            self.checkpointer.save("model_final", iteration=self.max_iter - 1)

    def run_step(self):
        """One iteration.

        Raises:
            Diverged: a loss that is NaN or infinite, or overflows in a row, see :class:`TrainStep`; the
                weights and the checkpoints are as they were before the iteration.
        """
        try:
            super().run_step()
        except FloatingPointError as error:
            reason = re.sub(r"np\.float64\((.*?)\)", r"\1", one_line(error))
            raise Diverged(
                f"training stopped at iteration {self.iter}: {reason} (classification loss: {self._loss_names()}). "
                f"Checkpoints made before are in {self.settings.output_dir}. Lower SOLVER.BASE_LR, warm up longer, or "
                f"clip gradients (SOLVER.CLIP_GRADIENTS)"
            ) from error

    def after_train(self):
        """Detectron2's, without an evaluation where training has failed."""
        drop_evaluation_of_a_failure(self)
        super().after_train()

    def _loss_names(self) -> str:
        return ", ".join(sorted({type(loss).__name__ for loss in losses_of(self.model)})) or "Detectron2's own"

    def build_hooks(self):
        """Detectron2's, with interruption and exact resumption.

        And the gradient balance, by ``GRADIENT_BALANCE_PERIOD``, the average of the weights, by ``MODEL_EMA``, and
        test-time augmentation if ``TEST.AUG.ENABLED``.
        """
        run = self.settings
        balance = build_gradient_balance(self.cfg, self.model)  # before the checkpoint, which has its sums; or None
        before = [hooks.IterationTimer(), hooks.LRScheduler(), balance]
        if run.precise_bn_iterations and get_bn_modules(self.model):
            before.append(self._build_precise_bn())
        before.append(self._ema)
        if comm.is_main_process():
            saving = hooks.PeriodicCheckpointer(
                self.checkpointer, run.checkpoint_period, max_to_keep=run.checkpoints_kept
            )
            before.append(saving)
        self._interruption = Interruption(self.checkpointer)
        # If these fail or are interrupted there is a checkpoint.
        behind = [hooks.EvalHook(run.eval_period, self._test_in_training)]
        if run.test_time_augmentation:
            behind.append(hooks.EvalHook(0, self._test_with_tta_after_training))
        if comm.is_main_process():
            behind.append(hooks.PeriodicWriter(self.build_writers(), period=run.write_period))
        self._resumption = Resumption(self.data_loader, run.output_dir, behind, run.write_period)
        return [self._resumption, *before, self._interruption, *behind]

    def build_writers(self):
        """Detectron2's."""
        folder = self.settings.output_dir
        paths = {
            JSONWriter: os.path.join(folder, "metrics.json"),
            TensorboardXWriter: f"TensorBoard's file in {folder}",
        }
        writers = default_writers(folder, self.max_iter)
        return [NamedWriter(w, paths[type(w)]) if type(w) in paths else w for w in writers]

    def _build_precise_bn(self):
        """It runs as often as evaluation, on a stream of images of its own, read in this process to save memory."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0
        loader = self.build_train_loader(cfg)
        return PreciseBN(self.settings.eval_period, self.model, loader, self.settings.precise_bn_iterations)

    @contextmanager
    def _evaluation(self):
        """The context of an evaluation in training: with the average of the weights, and nothing lost if it fails."""
        with self._interruption.saved_if_it_fails(), self._ema.applied() if self._ema else nullcontext():
            yield

    def _test_in_training(self):
        with self._evaluation():
            self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def _test_with_tta_after_training(self):
        with self._evaluation():
            results = self.test_with_tta(self.cfg, self.model)
        self._last_eval_results = merge_results(self._last_eval_results, results)
        return results

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """Evaluate on every test set, with the detections that fixed AP needs if the config asks for it.

        SIGTERM and SIGINT end it at once.

        Args:
            evaluators: one, or one for each test set, in the place of those of :meth:`build_evaluator`.

        Returns:
            task -> {metric: score}; with several test sets dataset -> task -> {metric: score}. None in other processes
            than the main one.
        """
        run = settings_of(cfg)
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        results = OrderedDict()
        with interruptible(), explained_worker_failures(), detections_for_fixed_ap(run, model):
            for i, name in enumerate(run.test_sets):
                loader = cls.build_test_loader(cfg, name)
                evaluator = evaluators[i] if evaluators else cls.build_evaluator(cfg, name)
                results[name] = inference_on_dataset(model, loader, evaluator)
                if comm.is_main_process():
                    logger.info("Evaluation results for %s in csv format:", name)
                    print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    @classmethod
    def test_with_tta(cls, cfg, model):
        """:meth:`test` with test-time augmentation (``TEST.AUG``); tasks are called `bbox_TTA`, ..."""
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
        """:meth:`test`, and :meth:`test_with_tta` too if ``TEST.AUG.ENABLED``; a full disk is an OutputError."""
        run = settings_of(cfg)
        with explained_write_errors(run.output_dir):
            results = cls.test(cfg, model)
            if run.test_time_augmentation:
                results = merge_results(results, cls.test_with_tta(cfg, model))
        return results

    @staticmethod
    def auto_scale_workers(cfg, num_workers: int):
        """Detectron2's, which also scales the iterations at which a loss changes. A LazyConfig has no such key."""
        if isinstance(cfg, DictConfig):
            return cfg
        scaled = DefaultTrainer.auto_scale_workers(cfg, num_workers)
        factor = scaled.SOLVER.MAX_ITER / cfg.SOLVER.MAX_ITER
        if factor != 1:
            scaled.defrost()
            scale_iterations(scaled.MODEL.ROI_BOX_HEAD.CLS_LOSS, factor)
            scaled.freeze()
        return scaled

    @classmethod
    def build_model(cls, cfg):
        """The config's, with the parts of ``MODEL.FREEZE`` frozen, and told of image labels if its losses want them."""
        model = tell_image_labels(freeze(parts_of(cfg).build_model(cfg), settings_of(cfg).freeze))
        logger.info("Model:\n%s", model)
        return model

    @classmethod
    def build_train_loader(cls, cfg):
        """A :class:`TrainLoader` of the training sets, or a LazyConfig's own loader; a batch is a micro-batch.

        Raises:
            InputError: a broken annotation file, named; or one without the image labels that the config wants.
        """
        with explained_dataset_errors(settings_of(cfg).train_sets), without_garbage_collection():
            loader = parts_of(cfg).build_train_loader(cfg)
        give_memory_back()
        return loader

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        """Detectron2's loader; a broken annotation file or image is an InputError that names it."""
        end_workers_that_cannot_send()
        with explained_dataset_errors([dataset_name]):
            return parts_of(cfg).build_test_loader(cfg, dataset_name)

    @classmethod
    def build_optimizer(cls, cfg, model):
        """The config's; of a YAML file Detectron2's SGD, with ``SOLVER.CLASSIFIER_LR_FACTOR`` on the classifier."""
        return parts_of(cfg).build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        """Detectron2's, with the config's schedule."""
        return parts_of(cfg).build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, folder="inference"):
        """The evaluator that the dataset's ``evaluator_type`` names; it writes to ``folder`` of the output."""
        output_dir = os.path.join(settings_of(cfg).output_dir, folder, dataset_name)
        return build_evaluator(cfg, dataset_name, output_dir)


def set_learning_rates(optimizer, scheduler) -> None:
    """Those of the scheduler's iteration, from each group's own base."""
    scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, scheduler.get_lr(), strict=True):
        group["lr"] = rate


@contextmanager
def explained_worker_failures():
    """Within this context a data worker that is gone, of an evaluation, is an InputError of one line."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise InputError(f"evaluation stopped: {last_line(error)}") from error


def classes_of(train_sets) -> list[str] | None:
    """The names of a model's classes by the sets that it is trained on, which agree; None where nothing says."""
    named = (MetadataCatalog.get(name).get("thing_classes") for name in train_sets)
    return next((list(classes) for classes in named if classes), None)


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
