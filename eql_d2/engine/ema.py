"""An exponential moving average of the weights, which is what is evaluated and saved as the model."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.engine import HookBase
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from eql_d2.errors import InputError
from eql_d2.losses import ClassificationLoss


class ModelEMA(HookBase):
    """After each iteration w_ema <- decay w_ema + (1 - decay) w; place it before the checkpointer.

    Averaged are the floating-point parameters and buffers (running statistics), but for the state of the losses,
    which is no weight. The average starts at the weights that training starts from, without a bias correction, as in
    d2go and detrex.

    A checkpoint has the average as its `model`, so that every tool evaluates what training has evaluated, and the
    weights themselves in the trainer's state: a resumed run goes on from those, bit for bit.

    Args:
        model: the trained model, perhaps a DistributedDataParallel.
        decay: in (0, 1); 0.999 averages over about the last 1000 iterations.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.decay = decay
        of_losses = {
            f"{name}.{key}"
            for name, loss in self.model.named_modules()
            if isinstance(loss, ClassificationLoss)
            for key in loss.state_dict()
        }
        self._names = [
            name
            for name, value in self.model.state_dict().items()
            if value.is_floating_point() and name not in of_losses
        ]
        self.averages: dict[str, torch.Tensor] = {}  # by name: what a checkpoint has in the place of the weights
        self._loaded = False

    def _weights(self) -> dict[str, torch.Tensor]:
        """Those that are averaged; they share their memory with the model."""
        state = self.model.state_dict()
        return {name: state[name] for name in self._names}

    def before_train(self):
        if not self._loaded:
            self.averages.update(clones(self._weights()))

    @torch.no_grad()
    def after_step(self):
        for name, weight in self._weights().items():
            self.averages[name].lerp_(weight, 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within this context the model has the averages for its weights."""
        trained = clones(self._weights())
        self._set(self.averages)
        try:
            yield
        finally:
            self._set(trained)

    def apply(self) -> None:
        """Leave the averages in the model, for good."""
        self._set(self.averages)

    @torch.no_grad()
    def _set(self, values: dict[str, torch.Tensor]) -> None:
        for name, weight in self._weights().items():
            weight.copy_(values[name])

    def state_dict(self) -> dict:
        return {"trained": clones(self._weights())}

    def load_state_dict(self, state: dict) -> None:
        """After the checkpoint's `model`, the averages, was loaded into the model."""
        self.averages.update(clones(self._weights()))
        self._set(state["trained"])
        self._loaded = True


def clones(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def require_averaging(hooks: dict, has_hook: bool) -> None:
    """A run that has averaged its weights goes on averaging: its checkpoints' `model` is not what it trains."""
    if ModelEMA.__qualname__ in hooks and not has_hook:
        raise InputError(
            "the checkpoint to resume from is of a run that averages its weights: set MODEL_EMA.ENABLED True (in a "
            "LazyConfig train.model_ema.enabled=True), or start a new run from it without --resume"
        )
