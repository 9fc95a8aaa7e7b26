"""One training step: mixed precision, gradient accumulation, and what happens where numbers overflow."""

import logging
import time
from contextlib import nullcontext
from functools import reduce

import torch
import torch.distributed as dist
from detectron2.engine import SimpleTrainer, TrainerBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from fvcore.nn.precise_bn import get_bn_modules
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eql_d2.errors import InputError, one_line
from eql_d2.losses import CountsSteps, losses_of

logger = logging.getLogger(__name__)

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
# GradScaler starts at a factor of 2^16 and halves it at each overflow, so 16 in a row may be its search for one.
MAX_SKIPPED_IN_A_ROW = 30


class DataError(InputError):
    """The next batches cannot be had in some process; raised in all of them, before anything of a step is computed.

    The message is one line, in the process that failed with the error as its cause.
    """


class TrainStep(SimpleTrainer):
    """Detectron2's SimpleTrainer, with mixed precision and gradient accumulation where asked for, on any device.

    In one process, in full precision and without accumulation, the weights are those of SimpleTrainer bit for bit.

    Overflow: a step whose gradient's norm is infinite or NaN in any process is skipped in all of them. Weights,
    optimizer and statistics (the floating-point buffers) stay as they were, a warning is logged, and the number of
    skipped steps is `skipped_steps` of the EventStorage. A loss that is infinite or NaN is fatal in full precision, as
    in SimpleTrainer; in mixed precision it is an overflow like another.

    Batch normalisation: running statistics are averaged over the processes, or each would evaluate with its own.

    Args:
        model, data_loader, optimizer: as for SimpleTrainer; the loader gives one micro-batch at a time.
        precision: ``torch.bfloat16``, or ``torch.float16`` with a GradScaler, for autocast; None: full precision.
        accumulate_steps: >= 1, micro-batches an optimizer step. Their gradients are averaged, so that the step is that
            of the joined batch where the loss is a mean over images and the model has no statistics of a batch.
            Losses are averaged for the log; a loss or layer that counts its calls counts each micro-batch.
        kwargs: the options of SimpleTrainer.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader,
        optimizer: torch.optim.Optimizer,
        *,
        precision: torch.dtype | None = None,
        accumulate_steps: int = 1,
        **kwargs,
    ):
        super().__init__(model, data_loader, optimizer, **kwargs)
        self.precision = precision
        self.accumulate_steps = accumulate_steps
        self.device_type = next(model.parameters()).device.type
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=precision is torch.float16)
        self.batch_norms = get_bn_modules(model)
        self.losses = losses_of(model)
        for module in model.modules():
            if isinstance(module, CountsSteps):
                module.calls_per_iteration = accumulate_steps
        self.skipped_steps = 0
        self.skipped_in_a_row = 0

    def run_step(self):
        """One optimizer step.

        Raises:
            DataError: in all processes; the model is as before the step.
            FloatingPointError: in all processes, where a loss is infinite or NaN in full precision, or after
                MAX_SKIPPED_IN_A_ROW skipped steps in a row. Weights and optimizer are as before the step.
        """
        assert self.model.training, "[TrainStep] model was changed to eval mode!"
        batches, data_time = self._next_batches()
        statistics = copies_of(self._statistics())
        losses = self._forward_backward(batches)
        self.grad_scaler.unscale_(self.optimizer)  # so that hooks see what the optimizer will
        self.after_backward()

        loss_is_finite, gradient_is_finite = self._finite_in_all_processes(losses)
        overflow = not (loss_is_finite and gradient_is_finite)
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if overflow else 0
        full_precision = self.precision is None
        fatal = self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW or (full_precision and not loss_is_finite)
        if loss_is_finite or fatal:
            self._log_losses(losses, data_time)  # which raises in the main process if one is not finite
        if fatal:
            raise FloatingPointError(
                f"the loss or its gradient was infinite or NaN {self.skipped_in_a_row} time(s) in a row"
            )
        if overflow:
            self._skip(statistics)
        else:
            self.grad_scaler.step(self.optimizer)
            average_running_statistics(self.batch_norms)
        self.grad_scaler.update()

    def _next_batches(self) -> tuple[list, float]:
        """The micro-batches of a step, and the seconds waited for them."""
        start, batches, failure = time.perf_counter(), [], None
        try:
            batches = [next(self._data_loader_iter) for _ in range(self.accumulate_steps)]
        except Exception as error:  # whatever images, a mapper or a worker that was killed give rise to
            failure = error
        seconds = time.perf_counter() - start
        messages = [message for message in comm.all_gather(failure and last_line(failure)) if message]
        if messages:
            raise DataError(messages[0]) from failure
        return batches, seconds

    def _forward_backward(self, batches: list) -> dict[str, torch.Tensor]:
        """Add up the gradients of the micro-batches; returns the mean losses."""
        n = len(batches)
        losses: list[dict[str, torch.Tensor]] = []
        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        for i, data in enumerate(batches):
            with self._gradients_of_this_process() if i < n - 1 else nullcontext():
                loss_dict = self._forward(data)
                if i == 0 and not self.zero_grad_before_forward:
                    self.optimizer.zero_grad()
                self.grad_scaler.scale(total(loss_dict) / n).backward()
            losses.append({name: loss.detach() for name, loss in loss_dict.items()})
        if n == 1:
            return losses[0]
        return {name: torch.stack([part[name] for part in losses]).mean(dim=0) for name in losses[0]}

    def _gradients_of_this_process(self):
        """A context in which backward leaves the gradients of other processes alone: the last one fetches them all."""
        parallel = isinstance(self.model, DistributedDataParallel)
        return self.model.no_sync() if parallel else nullcontext()

    def _forward(self, data) -> dict[str, torch.Tensor]:
        mixed = self.precision is not None
        with torch.autocast(self.device_type, self.precision) if mixed else nullcontext():
            losses = self.model(data)
        return {"total_loss": losses} if isinstance(losses, torch.Tensor) else losses

    def _finite_in_all_processes(self, losses) -> list[bool]:
        """Whether the loss, and whether the gradient's norm, is finite in every process: the same answer in each."""
        parameters = (p for group in self.optimizer.param_groups for p in group["params"])
        gradients = [p.grad for p in parameters if p.grad is not None]
        finite = torch.stack([total(losses).detach(), total_norm(gradients)]).isfinite().to(torch.uint8)
        if comm.get_world_size() > 1:
            dist.all_reduce(finite, op=dist.ReduceOp.MIN)
        return finite.bool().tolist()

    def _log_losses(self, losses, data_time) -> None:
        if self.async_write_metrics:
            self.concurrent_executor.submit(self._write_metrics, losses, data_time, iter=self.iter)
        else:
            self._write_metrics(losses, data_time)

    def _statistics(self) -> list[torch.Tensor]:
        """The buffers that an overflow would spoil for good. Counts cannot overflow, and go on."""
        modules = (*self.batch_norms, *self.losses)
        return [buffer for module in modules for buffer in module.buffers() if buffer.is_floating_point()]

    def _skip(self, statistics: list[torch.Tensor]) -> None:
        """Leave the model as it was before the step, when its statistics were these."""
        for buffer, before in zip(self._statistics(), statistics):
            buffer.copy_(before)
        self.skipped_steps += 1
        get_event_storage().put_scalar("skipped_steps", self.skipped_steps, smoothing_hint=False)
        logger.warning(
            "iteration %d is skipped: its loss or gradient is infinite or NaN (%d skipped so far, %d in a row)",
            self.iter,
            self.skipped_steps,
            self.skipped_in_a_row,
        )

    def after_train(self):
        drop_evaluation_of_a_failure(self)
        super().after_train()

    def state_dict(self):
        return {
            **super().state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.skipped_steps = state_dict.get("skipped_steps", 0)  # absent in a checkpoint of Detectron2's trainers
        self.skipped_in_a_row = state_dict.get("skipped_in_a_row", 0)
        if state_dict.get("grad_scaler"):  # empty or absent where the checkpoint is not of an fp16 training
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def last_line(error: Exception) -> str:
    """What an error says, on one line; from a worker process it begins with the traceback there."""
    if isinstance(error, (ConnectionError, EOFError)):  # it was killed while its batch was read
        return f"a worker of the data loader is gone ({one_line(error) or type(error).__name__})"
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def drop_evaluation_of_a_failure(trainer: TrainerBase) -> None:
    """To be called before the hooks' ``after_train``: a training that has failed is not evaluated.

    EvalHook means so, too, but takes a failure in the last iteration for the end; where only one process has failed,
    it would wait in the evaluation for the others, and they for its gradients.
    """
    if trainer.iter < trainer.max_iter:
        trainer._hooks = [h for h in trainer._hooks if not isinstance(h, hooks.EvalHook)]


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """The sum of the losses, added up in their order."""
    return reduce(torch.add, losses.values())


def copies_of(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Of floating-point tensors, by a kernel for all of them: a step has many statistics, and small ones."""
    return list(torch._foreach_mul(tensors, 1)) if tensors else []


def total_norm(gradients: list[torch.Tensor]) -> torch.Tensor:
    """The L2 norm of all gradients together; infinite or NaN if any of them is.

    As ``torch.nn.utils.get_total_norm``, which torch has since 2.6: a few kernels, not one a parameter.
    """
    return torch.stack(torch._foreach_norm(gradients)).norm()


@torch.no_grad()
def average_running_statistics(batch_norms: list[nn.Module]) -> None:
    """Set the running means and variances to their mean over the processes, by one all-reduce.

    They are linear in the statistics of the batches, so it makes no difference how often this is done.
    """
    running = [b for m in batch_norms for b in m.buffers(recurse=False) if b.is_floating_point()]
    if comm.get_world_size() == 1 or not running:
        return
    packed = torch.cat(running)
    dist.all_reduce(packed)
    packed /= comm.get_world_size()
    for statistic, mean in zip(running, packed.split([len(x) for x in running])):
        statistic.copy_(mean)


def mixed_precision(name: str, device: str) -> torch.dtype:
    """The type that "bf16" or "fp16" (SOLVER.AMP.PRECISION) stands for."""
    if name not in PRECISIONS:
        raise InputError(
            f"SOLVER.AMP.PRECISION is '{name}', expected one of {list(PRECISIONS)} (in a LazyConfig the key is "
            f"train.amp.precision)"
        )
    if name == "fp16" and torch.device(device).type == "cpu":
        raise InputError(
            f"SOLVER.AMP.PRECISION fp16 needs a GPU, but MODEL.DEVICE is {device}: set it to bf16, which runs on the "
            f"CPU too, or SOLVER.AMP.ENABLED to False"
        )
    return PRECISIONS[name]


def micro_batch_size(batch_size: int, accumulate_steps: int) -> int:
    """Images of one micro-batch, in all processes together, where ``batch_size`` make an optimizer step."""
    processes = comm.get_world_size()
    parts = accumulate_steps * processes
    if accumulate_steps < 1 or batch_size < 1 or batch_size % parts:
        raise InputError(
            f"SOLVER.IMS_PER_BATCH is {batch_size}, SOLVER.ACCUMULATE_STEPS {accumulate_steps}, and there are "
            f"{processes} processes (in a LazyConfig the two are dataloader.train.total_batch_size and "
            f"train.accumulate_steps): all must be at least 1, and the first a multiple of the product of the others"
        )
    return batch_size // accumulate_steps
