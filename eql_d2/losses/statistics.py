"""Statistics of a batch, the same in every process.

Shapes as in :mod:`eql_d2.losses.base`.
"""

import torch
from detectron2.utils import comm


def sum_over_processes(x: torch.Tensor) -> torch.Tensor:
    """The sum of every process's ``x``, of the same shape in all of them; with one process ``x`` itself."""
    if comm.get_world_size() > 1:
        x = x.clone()
        torch.distributed.all_reduce(x)
    return x
