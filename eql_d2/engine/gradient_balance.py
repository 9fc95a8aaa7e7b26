"""What the classification loss does to rare, common and frequent categories while it trains.

Shapes as in :mod:`eql_d2.losses.base`. z_ij is the logit of category j in RoI i, L the loss of one call.
"""

import json
import logging
import math
import os
from collections.abc import Sequence

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from eql_d2.data import ClassFrequencies
from eql_d2.data.letters import GROUP_NAMES
from eql_d2.data.whole_files import written_whole
from eql_d2.engine.settings import settings_of
from eql_d2.errors import InputError
from eql_d2.evaluation.run_folder import GRADIENT_BALANCE_FILE
from eql_d2.losses import ClassificationLoss
from eql_d2.losses.fused import blocks_of_rows, own_entry
from eql_d2.modeling.meta_reweighter import MetaReweighter
from eql_d2.modeling.predictors import Predictor, predictors_of

logger = logging.getLogger(__name__)

LOOKS_PER_LOG = 4  # iterations of a period in which the loss of each group is computed


class GradientBalance(HookBase):
    """Logs, for each frequency group, the loss, its gradients, the classifier's weight norms and scores.

    The gradient that the classifier's row of category j gets is summed apart by the label of the RoI it comes from, as
    in the figures of "Equalization Loss for Long-Tailed Object Recognition" (arXiv:2003.05176) and "Equalization Loss
    v2" (arXiv:2012.08548):

        positive_j = sum over RoIs labelled j of |dL/dz_ij|,    negative_j = sum over the other RoIs of |dL/dz_ij|

    A category whose ratio positive_j / negative_j is far below 1 is pushed down more than up. Sums are made in every
    iteration, with no transfer to the host but in the four iterations of a period in which the costs below are
    computed, too: there RoIs are selected by group, and a GPU is waited for. They are added over processes when they
    are logged. A gradient that is not finite, whose step a GradScaler skips, adds nothing. L is the loss before loss
    weights, loss scale and the division by accumulated batches; each process has its own.

    Every ``period`` iterations the scalars of docs/report.md, means since the last log, go to EventStorage, and under
    `stage0/` and so on in a cascade. A cost is L of the RoIs of a group alone, in four iterations: a loss that
    normalises over its batch does so over these. (It is not called "loss", since Detectron2 prints whatever has that in
    its name.)

    A value without RoIs or categories is left out. Training is not changed: weights are bit-equal with and without.
    ``gradient_balance.json`` has the sums of the whole training by category, in the model's order, also after resuming:
    ``{"iterations": n, "stages": [{"positive": [K numbers], "negative": [...]}, ...]}``.

    Args:
        predictors: the model's box predictors, one for each stage.
        frequencies: counts of the training set, which group the K categories.
        period: >= 1, iterations between two logs.
        checkpoint_period: >= 1, iterations between two checkpoints, at which the file is written; register this hook
            before the checkpointer's.
        output_dir: folder of the file.
    """

    def __init__(
        self,
        predictors: Sequence[Predictor],
        frequencies: ClassFrequencies,
        period: int,
        checkpoint_period: int,
        output_dir: str,
    ):
        if period < 1:
            raise InputError(f"GRADIENT_BALANCE_PERIOD must be a number of iterations, or 0 for none, got {period}")
        self._stages = [_Stage(predictor, frequencies.groups) for predictor in predictors]
        self._handles: list[RemovableHandle] = []
        self._period, self._checkpoint_period = period, checkpoint_period
        self._path = os.path.join(output_dir, GRADIENT_BALANCE_FILE)
        self._logged_iterations = self._iterations = 0
        self._total = torch.zeros(len(predictors), 2, len(frequencies), dtype=torch.float64)
        self._logged_total = self._total.clone()
        self._by_label = torch.zeros(len(predictors), *_Stage.BY_LABEL, dtype=torch.float64)  # since the last log
        self._of_processes: list[list[list[torch.Tensor]]] = []  # at the last checkpoint, what each had not added up

    def before_train(self):
        self._handles = [stage.watch() for stage in self._stages]

    def after_train(self):
        for handle in self._handles:
            handle.remove()

    def before_step(self):
        for stage in self._stages:
            stage.look_closer = self._is_due(max(1, self._period // LOOKS_PER_LOG))

    def after_step(self):
        self._iterations += 1
        if self._is_due(self._period):
            self._add_up()
            if comm.is_main_process():
                self._log()
        is_last = self.trainer.iter + 1 >= self.trainer.max_iter
        if is_last or self._is_due(self._checkpoint_period):
            self._of_processes = comm.gather(self._own_sums())
            if comm.is_main_process():
                self._write()

    def _is_due(self, period: int) -> bool:
        return (self.trainer.iter + 1) % period == 0

    def _add_up(self) -> None:
        """Move what the stages of all processes have summed to the totals."""
        gradient = torch.stack([stage.gradient for stage in self._stages])
        by_label = torch.stack([stage.by_label for stage in self._stages])
        # In one collective, which leaves the sums in the main process.
        sums = comm.reduce_dict({"sums": torch.cat([gradient.flatten(), by_label.flatten()])}, average=False)
        gradient_sum, by_label_sum = sums["sums"].cpu().split([gradient.numel(), by_label.numel()])
        self._total += gradient_sum.view_as(self._total)
        self._by_label += by_label_sum.view_as(self._by_label)
        for stage in self._stages:
            stage.reset()
        self._of_processes = []

    def _own_sums(self) -> list[list[torch.Tensor]]:
        """Of each stage what this process has not yet added to the totals."""
        return [[stage.gradient.cpu().clone(), stage.by_label.cpu().clone()] for stage in self._stages]

    def _log(self) -> None:
        since_last = self._total - self._logged_total
        iterations = self._iterations - self._logged_iterations
        for i, stage in enumerate(self._stages):
            scalars = {
                **gradient_scalars(since_last[i] / iterations, stage.members),
                **stage.weight_norms(),
                **stage.class_weights(),
                **label_scalars(self._by_label[i]),
            }
            prefix = f"stage{i}/" if len(self._stages) > 1 else ""
            for name, value in scalars.items():
                self.trainer.storage.put_scalar(f"{prefix}balance/{name}", value)
        self._logged_total, self._logged_iterations = self._total.clone(), self._iterations
        self._by_label.zero_()

    def _write(self) -> None:
        total = self._total.clone()
        for process in self._of_processes:
            total += torch.stack([gradient for gradient, _ in process])
        stages = [dict(zip(("positive", "negative"), sums)) for sums in total.tolist()]
        with written_whole(self._path) as file:
            json.dump({"iterations": self._iterations, "stages": stages}, file)

    def state_dict(self):
        """The sums until now; with several processes, of which one writes checkpoints, until they were last gathered.

        They are added up where they are logged, and nowhere else: at checkpoints they would be rounded otherwise than
        in a run with another period, or one that was not interrupted.
        """
        alone = comm.get_world_size() == 1
        return {
            "processes": [self._own_sums()] if alone else self._of_processes,
            "iterations": self._iterations,
            "total": self._total.clone(),
            "logged_iterations": self._logged_iterations,
            "logged_total": self._logged_total.clone(),
            "by_label": self._by_label.clone(),
        }

    def load_state_dict(self, state):
        self._iterations, self._logged_iterations = state["iterations"], state["logged_iterations"]
        self._total.copy_(state["total"])
        self._logged_total.copy_(state["logged_total"])
        self._by_label.copy_(state["by_label"])
        processes = state.get("processes") or [state.get("stages", ())]  # the latter in a checkpoint of before
        for process in processes[comm.get_rank() :: comm.get_world_size()]:
            for stage, (gradient, by_label) in zip(self._stages, process):
                stage.gradient += gradient.to(stage.gradient.device)
                stage.by_label += by_label.to(stage.by_label.device)


class _Stage:
    """Watches the loss of one box predictor, and sums what it sees on the model's device."""

    # RoIs, and the sum of their scores; RoIs looked at closer, and the sum of their losses. Each of rare, common,
    # frequent and background.
    BY_LABEL = (4, 4)

    def __init__(self, predictor: Predictor, groups: str):
        self._predictor = predictor
        device = predictor.cls_score.weight.device
        letters = list(GROUP_NAMES)
        # (K + 1,) 0, 1, 2 for rare, common, frequent, and 3 for background
        self._group_of = torch.tensor([*map(letters.index, groups), len(letters)], device=device)
        self.members = {  # the categories of each group that has any
            name: torch.tensor([j for j, g in enumerate(groups) if g == letter])
            for letter, name in GROUP_NAMES.items()
            if letter in groups
        }
        self.gradient = torch.zeros(2, len(groups), dtype=torch.float64, device=device)  # positive, negative
        self.by_label = torch.zeros(self.BY_LABEL, dtype=torch.float64, device=device)
        self.look_closer = False

    def reset(self) -> None:
        self.gradient.zero_()
        self.by_label.zero_()

    def watch(self):
        """Sum from now on, until the returned handle is removed."""
        return self._predictor.cls_loss.register_forward_hook(
            lambda _loss, args, kwargs, value: self._after_loss(value, *args, **kwargs), with_kwargs=True
        )

    def _after_loss(self, value, logits, gt_classes, features=None, negatives=None, reduction="mean") -> None:
        """Sum what a call of the loss shows; of a dense detector, which asks for a sum, as of the mean."""
        if not (value.requires_grad and logits.requires_grad):  # no training step, or nothing to train here
            return
        outer = None  # dL_total / dL: loss weight, loss scale, accumulation

        def before_backward(gradient):
            nonlocal outer
            outer = gradient

        def after_backward(gradient):
            if outer is None:  # the gradient of something else
                return
            K = self.gradient.shape[1]
            sums = positive_and_negative(gradient[:, :K], gt_classes) / outer
            sums = sums / (len(gt_classes) if reduction == "sum" else 1)
            self.gradient += torch.where(sums.sum() < math.inf, sums, 0)  # NaN is not less, either

        value.register_hook(before_backward)
        logits.register_hook(after_backward)
        group = self._group_of[gt_classes]
        self._add_scores(logits.detach(), gt_classes, group)
        if self.look_closer:
            self._add_losses(group, logits, gt_classes, features, negatives)

    def _add_scores(self, logits, gt_classes, group) -> None:
        for place in blocks_of_rows(logits):
            score = self._predictor.cls_loss.probs(logits[place]).gather(1, gt_classes[place, None])[:, 0].double()
            self.by_label[0].scatter_add_(0, group[place], torch.ones_like(score))
            self.by_label[1].scatter_add_(0, group[place], score)

    @torch.no_grad()
    def _add_losses(self, group, *inputs) -> None:
        for i in range(self.by_label.shape[1]):
            # Also where there are none: processes whose losses exchange statistics wait for one another.
            rows = group == i
            value = value_of(self._predictor.cls_loss, *(None if x is None else x[rows] for x in inputs))
            self.by_label[2, i] += rows.sum()
            self.by_label[3, i] += rows.sum() * value

    def weight_norms(self) -> dict[str, float]:
        weight = self._predictor.cls_score.weight.detach().flatten(1)  # of a row for each logit, and anchor of a place
        norms = weight.norm(dim=1).view(-1, self._predictor.cls_loss.num_logits).mean(dim=0).cpu()
        return {f"weight_norm_{name}": float(norms[m].mean()) for name, m in self.members.items()}

    def class_weights(self) -> dict[str, float]:
        """Mean learned weights of the groups and background, where the loss learns any."""
        if not isinstance(self._predictor.cls_loss, MetaReweighter):
            return {}
        weight = self._predictor.cls_loss.log_weight.exp().cpu()
        of_groups = {f"class_weight_{name}": float(weight[m].mean()) for name, m in self.members.items()}
        return of_groups | {"class_weight_background": float(weight[-1])}


def positive_and_negative(gradient: torch.Tensor, gt_classes: torch.Tensor) -> torch.Tensor:
    """(2, K) sums of |gradient| of each column: over the RoIs that it is the label of, and over the others.

    Args:
        gradient: (R, K) dL/dz of the K categories, of any float dtype; summed in fp32 at least.
        gt_classes: (R,) int64 in [0, K].
    """
    K = gradient.shape[1]
    sums = gradient.new_zeros(2, K, dtype=torch.promote_types(gradient.dtype, torch.float32))
    positive, negative = sums
    columns, foreground = own_entry(gt_classes, K)
    for place in blocks_of_rows(gradient):  # or the anchors of a dense detector would fill the memory once more
        magnitude, column = gradient[place].abs().to(sums.dtype), columns[place]
        own = magnitude.gather(1, column) * foreground[place]
        positive.scatter_add_(0, column[:, 0], own[:, 0])
        negative += magnitude.scatter_add_(1, column, -own).sum(dim=0)  # exactly 0 at the label
    return sums


def value_of(loss: ClassificationLoss, *inputs) -> torch.Tensor:
    """The loss of these RoIs, without a trace: not in its statistics, its step count or the random stream."""
    was_training = loss.training
    devices = [inputs[0].device] if inputs[0].is_cuda else []
    try:
        loss.eval()
        buffers = {name: buffer.clone() for name, buffer in loss.named_buffers()}
        with torch.random.fork_rng(devices):
            return functional_call(loss, buffers, inputs).double()
    finally:
        loss.train(was_training)


def gradient_scalars(gradient: torch.Tensor, members: dict[str, torch.Tensor]) -> dict[str, float]:
    """Scalars of (2, K) positive and negative gradients, for each group of `members`, name -> categories."""
    scalars = {}
    for name, categories in members.items():
        positive, negative = gradient[:, categories].mean(dim=1).tolist()
        scalars[f"positive_gradient_{name}"] = positive
        scalars[f"negative_gradient_{name}"] = negative
        if negative > 0:
            scalars[f"gradient_ratio_{name}"] = positive / negative
    return scalars


def label_scalars(by_label: torch.Tensor) -> dict[str, float]:
    """Scalars of the sums of :attr:`_Stage.BY_LABEL`."""
    scalars, names = {}, [*GROUP_NAMES.values(), "background"]
    for name, (rois, score, rois_looked_at, loss) in zip(names, by_label.t().tolist()):
        if rois > 0 and name != "background":  # which a sigmoid loss has no score for
            scalars[f"score_{name}"] = score / rois
        if rois_looked_at > 0:
            scalars[f"cost_{name}"] = loss / rois_looked_at
    return {name: value for name, value in scalars.items() if math.isfinite(value)}  # not those of an overflow


def build_gradient_balance(cfg, model) -> GradientBalance | None:
    """The hook that ``GRADIENT_BALANCE_PERIOD`` asks for.

    None if that is 0, if the model has no box predictor of this package, or, with a warning, if there are no category
    counts.
    """
    run = settings_of(cfg)
    predictors = predictors_of(model)
    if run.gradient_balance_period == 0 or not predictors:
        return None
    try:
        frequencies = run.frequencies()
    except ValueError as error:  # training itself may need no counts
        logger.warning("the gradient balance is not logged: %s", error)
        return None
    return GradientBalance(
        predictors,
        frequencies,
        period=run.gradient_balance_period,
        checkpoint_period=run.checkpoint_period,
        output_dir=run.output_dir,
    )
