"""What a loss accumulates over a training: the same in every process, saved in checkpoints, exact after many steps.

Shapes as in :mod:`eql_d2.losses.base`.
"""

import torch
from torch import distributed, nn

from eql_d2.errors import InputError


def world_size() -> int:
    """The number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def sum_over_processes(x: torch.Tensor) -> torch.Tensor:
    """The sum of every process's ``x``, of the same shape in all of them; with one process ``x`` itself."""
    if world_size() > 1:
        x = x.clone()
        torch.distributed.all_reduce(x)
    return x


def check_counts_once(name: str) -> None:
    """A loss that counts must be run once for a step: activation checkpointing runs it again, in backward.

    Raises:
        InputError: a backward pass is at work, or a transform of ``torch.func``, whose functions change nothing.
    """
    if torch.compiler.is_compiling():
        return
    if torch._C._are_functorch_transforms_active():
        raise InputError(
            f"{name} counts what it trains on, and a function that torch.func transforms may change nothing: call "
            f".eval() on it first"
        )
    if torch._C._current_graph_task_id() != -1:
        raise InputError(
            f"{name} is run again within backward, as by activation checkpointing (torch.utils.checkpoint): it would "
            f"count the step twice, and return another step's gradient. Leave the loss out of what is checkpointed"
        )


def as_it_is_now(buffer: torch.Tensor) -> torch.Tensor:
    """A buffer's value before (or after) this step's update, also in the backward of a compiled step.

    That computes some values again from what they were computed from, and would find a buffer that the step has changed
    since (https://github.com/pytorch/pytorch/pull/197039): silently another gradient. What this copies, it keeps.
    """
    return _kept(buffer) if torch.compiler.is_compiling() else buffer


@torch.library.custom_op("eql_d2::kept", mutates_args=())  # an operation the compiler does not know is not repeated
def _kept(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@_kept.register_fake
def _(x):
    return torch.empty_like(x)


class GradientSums(nn.Module):
    """How strongly each category was pulled up as a positive and pushed down as a negative, since training began.

    P_j is the sum of |R dL / dz_ij| over all RoIs of category j, N_j that over all others; each RoI counts the same,
    however many its batch has. float64: an fp32 sum of 90,000 steps no longer grows by the 1e-4 that a step adds for a
    rare category.

    Args:
        num_classes: K.
    """

    positive: torch.Tensor  # (K,) float64, P
    negative: torch.Tensor  # (K,) float64, N

    def __init__(self, num_classes: int):
        super().__init__()
        self.register_buffer("positive", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("negative", torch.zeros(num_classes, dtype=torch.float64))

    def ratio(self, initial: float) -> torch.Tensor:
        """(K,) float64 g_j = P_j / N_j, and ``initial`` for a category without any gradient yet."""
        positive, negative = as_it_is_now(self.positive), as_it_is_now(self.negative)
        return torch.where(positive + negative > 0, positive / (negative + 1e-10), initial)

    @torch.no_grad()
    def add(self, positive: torch.Tensor, negative: torch.Tensor) -> None:
        """Add this step's sums, (K,) each, of all processes.

        Where one of them is not finite (mixed precision skips such a step), the category keeps what it has.
        """
        check_counts_once("a loss that sums its gradients")
        sums = torch.stack([positive, negative]).double()
        sums = torch.where(sums.isfinite().all(dim=0), sums, 0)
        positive, negative = sum_over_processes(sums)
        self.positive += positive
        self.negative += negative

    def add_nothing(self) -> None:
        """Take part in the exchange with a process that has no RoIs."""
        nothing = torch.zeros_like(self.positive)
        self.add(nothing, nothing)
