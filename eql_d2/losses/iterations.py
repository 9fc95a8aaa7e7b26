"""Losses that change after a number of iterations. Shapes as in :mod:`eql_d2.losses.base`."""

import logging

import torch

from eql_d2.errors import InputError
from eql_d2.losses.base import ClassificationLoss, ScoredByAnother
from eql_d2.losses.fused import is_transformed
from eql_d2.losses.once import log_once
from eql_d2.losses.statistics import as_it_is_now, check_counts_once


class CountsSteps(ClassificationLoss):
    """A loss that knows for how many iterations it has been trained.

    Calls in training are counted, with RoIs or without, so that all processes count alike; each stage of a cascade
    counts its own. The count is a persistent int64 buffer whose name says whose it is: no loss goes on from the count
    of another. (In the first checkpoints all were named ``steps``, which is still taken.)

    Args:
        num_classes: K.
        owner: name of the loss that counts; "": the class's own.
        arguments: of the class that this is mixed into.
    """

    calls_per_iteration = 1  # where gradients are accumulated, the number of batches

    def __init__(self, num_classes: int, *, owner: str = "", **arguments):
        super().__init__(num_classes, **arguments)
        self._counter = f"steps_of_{owner or type(self).__name__}"
        self.register_buffer(self._counter, torch.zeros((), dtype=torch.int64))
        self._steps_on_host = 0

    @property
    def steps(self) -> torch.Tensor:
        """Scalar int64, the calls in training so far."""
        return self._buffers[self._counter]  # type: ignore[return-value]  # never None

    @steps.setter
    def steps(self, steps: torch.Tensor) -> None:
        self._buffers[self._counter] = steps

    @property
    def steps_done(self) -> int:
        """``steps`` as a number; on a GPU one that is kept on the host, since reading the buffer would wait."""
        return int(self.steps) if self.steps.device.type == "cpu" else self._steps_on_host

    def forward(self, *args, **kwargs) -> torch.Tensor:
        """As :meth:`ClassificationLoss.forward`."""
        value = super().forward(*args, **kwargs)
        if self.training:
            self.count_step()
        return value

    def count_step(self) -> None:
        """Count one call in training."""
        check_counts_once(type(self).__name__)
        self.steps.add_(1)
        if not is_transformed():  # which would be compiled anew for each number
            self._steps_on_host += 1

    def has_reached(self, iteration: int) -> bool:
        """Whether the loss has been trained for so many iterations. Not to be asked in a transformed function."""
        return self.steps_done >= iteration * self.calls_per_iteration

    def reached(self, iteration: int, message: str) -> torch.Tensor:
        """:meth:`has_reached` as a scalar bool on the loss's device, without a wait.

        Args:
            iteration: >= 0.
            message: what begins then, logged once when it does.
        """
        if self.training and iteration > 0 and not is_transformed() and self.has_reached(iteration):
            log_once(logging.INFO, f"{message} after {iteration} iterations")
        return as_it_is_now(self.steps) >= iteration * self.calls_per_iteration

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        if f"{prefix}steps" in state_dict:
            state_dict.setdefault(prefix + self._counter, state_dict.pop(f"{prefix}steps"))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if self.steps.device.type != "meta":
            self._steps_on_host = int(self.steps)


class LateStart(ScoredByAnother, CountsSteps):
    """One loss for the first iterations, another from then on: for losses that fine-tune what the first has taught.

    ``MODEL.ROI_BOX_HEAD.CLS_LOSS.START_ITER`` in YAML, with plain cross-entropy first; in Python
    ``LateStart(loss.plain(), loss, start_iter=1000)``. The second decides prior and scores. What it accumulates
    during training begins when it does.

    Args:
        first: the loss before.
        then: the loss after, of as many classes and logits.
        start_iter: >= 0, the iterations of ``first``.

    Raises:
        InputError: a number below 0, or losses of different logits.
    """

    def __init__(self, first: ClassificationLoss, then: ClassificationLoss, *, start_iter: int):
        super().__init__(then.num_classes, owner=type(then).__name__)
        if start_iter < 0:
            raise InputError(f"start_iter / START_ITER must be >= 0, got {start_iter}")
        if (first.num_classes, first.num_logits) != (then.num_classes, then.num_logits):
            raise InputError(
                f"a loss that starts later shares its logits with the one before: {type(first).__name__} has "
                f"{first.num_logits} for {first.num_classes} classes, {type(then).__name__} {then.num_logits} for "
                f"{then.num_classes}"
            )
        self.first = first
        self.then = then
        self.start_iter = start_iter
        self.prior_prob = then.prior_prob
        self.uses_negatives = first.uses_negatives or then.uses_negatives
        self.needs_negatives = first.needs_negatives or then.needs_negatives

    @property
    def scoring(self) -> ClassificationLoss:  # type: ignore[override]  # an attribute elsewhere
        return self.then

    @property
    def _name(self):  # START_ITER, not a name, makes this one
        return self.then._name

    def require_frequencies(self):
        self.first.require_frequencies()
        self.then.require_frequencies()

    def count_step(self):
        super().count_step()
        for loss in (self.first, self.then):
            if isinstance(loss, CountsSteps):
                loss.count_step()

    def compute(self, logits, rois):
        started = self.reached(self.start_iter, f"{type(self.then).__name__} takes over")
        if not is_transformed():
            return self.now.compute(logits, rois)
        # A compiled function cannot wait for the answer: both are computed, and the state of one is put back.
        before = [buffer.clone() for buffer in self.then.buffers()]
        losses = torch.where(started, self.then.compute(logits, rois), self.first.compute(logits, rois))
        if self.training:
            for buffer, old in zip(self.then.buffers(), before):
                buffer.copy_(torch.where(started, buffer, old))
        return losses

    def without_rois(self):
        self.now.without_rois()

    @property
    def now(self) -> ClassificationLoss:
        """The loss that is at work."""
        return self.then if self.has_reached(self.start_iter) else self.first

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        for name in self.then.state_dict():  # in the first checkpoints a late loss was not wrapped
            if name != self._counter and f"{prefix}{name}" in state_dict:
                state_dict.setdefault(f"{prefix}then.{name}", state_dict.pop(f"{prefix}{name}"))
        if isinstance(self.then, CountsSteps) and f"{prefix}steps" in state_dict:
            state_dict.setdefault(f"{prefix}then.steps", state_dict[f"{prefix}steps"])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
