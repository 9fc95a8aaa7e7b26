"""Detectron2's DefaultTrainer for this package's models and datasets."""

import logging
import os
import weakref

import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
)
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from eql_d2.data import ClassFrequencies, FrequenciesNotFound
from eql_d2.engine.checkpoint import LongTailCheckpointer
from eql_d2.evaluation.lvis_evaluation import LVISEvaluator
from eql_d2.evaluation.picture import PredictionPicture
from eql_d2.losses import ClassificationLoss

logger = logging.getLogger(__name__)

PICTURE = "ground_truth_and_predictions.png"


class Trainer(DefaultTrainer):
    """Trains and evaluates: LVIS or COCO metrics by the dataset's metadata, on GPUs or the CPU."""

    def __init__(self, cfg):
        """As ``DefaultTrainer.__init__``, which fixes the checkpointer and CUDA device ids and so is not called.

        Raises:
            ValueError: a loss that needs class frequencies to train and has none.
        """
        TrainerBase.__init__(self)
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
            setup_logger(name="eql_d2")
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

    def train(self):
        """Run training; returns the results of the last evaluation, or {} if there was none."""
        super().train()
        return getattr(self, "_last_eval_results", None) or {}

    @classmethod
    def build_optimizer(cls, cfg, model):
        """Detectron2's SGD, with ``SOLVER.CLASSIFIER_LR_FACTOR`` on the classifier layer."""
        parameters = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
            lr_factor_func=lambda name: (
                cfg.SOLVER.CLASSIFIER_LR_FACTOR if ".cls_score." in name else 1.0
            ),
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
    def build_evaluator(cls, cfg, dataset_name):
        """The evaluator that the dataset's ``evaluator_type`` names.

        Raises:
            ValueError: a type other than "lvis" and "coco".
        """
        output_dir = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
        if kind == "lvis":
            evaluator = LVISEvaluator(
                dataset_name,
                output_dir=output_dir,
                max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
            )
        elif kind == "coco":
            evaluator = COCOEvaluator(dataset_name, output_dir=output_dir, use_fast_impl=False)
        else:
            raise ValueError(
                f"dataset '{dataset_name}' of DATASETS.TEST has evaluator_type {kind!r} in its metadata; expected "
                f"'lvis' or 'coco': MetadataCatalog.get('{dataset_name}').set(evaluator_type=...)"
            )
        try:
            frequencies = ClassFrequencies.from_config(cfg)
        except FrequenciesNotFound as error:
            logger.warning("no picture of the predictions: %s", error)
            return evaluator
        picture = PredictionPicture(
            dataset_name, os.path.join(output_dir, PICTURE), frequencies
        )
        return DatasetEvaluators([evaluator, picture])
