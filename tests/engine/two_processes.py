"""What the processes of test_processes.py run: tools/train_net.py, then small training steps; each writes what it got.

Written to OUTPUT_DIR/rank<n>.pth, since the tool itself saves the weights of one process only. The process of rank
FAILING_RANK fails in the last iteration.
"""

import os
from pathlib import Path

import torch
from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn

from eql_d2.engine import DataError, Trainer, TrainStep, launch_tool
from eql_d2.engine import main as train_net
from eql_d2.engine.launch import distribute
from eql_d2.errors import InputError

X = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
STEPS = 3


class ObservedTrainer(Trainer):
    def train(self):
        results = super().train()
        got = {"weights": self.model.module.state_dict(), "results": results, **small_steps()}
        torch.save(got, Path(self.cfg.OUTPUT_DIR) / f"rank{comm.get_rank()}.pth")
        return results

    def run_step(self):
        if os.getenv("FAILING_RANK") == str(comm.get_rank()) and self.iter == self.max_iter - 1:
            raise InputError("a failure as planned")
        super().run_step()


class Cubes(nn.Module):
    """Fits a layer behind batch normalisation to the cubes of X."""

    def __init__(self, norm):
        super().__init__()
        torch.manual_seed(0)
        self.norm = nn.BatchNorm1d(2) if norm else nn.Identity()
        self.linear = nn.Linear(2, 2)
        self.double()

    def forward(self, x):
        return ((self.linear(self.norm(x)) - x**3) ** 2).mean()


def step_on(batches, norm=False, **arguments):
    """The model after STEPS training steps, and how many of them were skipped."""
    model = distribute(Cubes(norm), broadcast_buffers=False)
    step = TrainStep(model, batches, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), **arguments)
    with EventStorage():
        for step.iter in range(STEPS):
            step.run_step()
    return getattr(model, "module", model).state_dict(), step.skipped_steps


def small_steps():
    """This process's part of some trainings: of the 8 rows of X the first 4 are rank 0's."""
    mine = X.chunk(2)[comm.get_rank()]
    overflow = mine * (float("inf") if comm.get_rank() == 1 else 1)
    return {
        "accumulated": step_on(STEPS * mine.chunk(2), accumulate_steps=2),
        "normalised": step_on(STEPS * [mine], norm=True),
        "overflow": step_on([mine, overflow, mine], norm=True, precision=torch.bfloat16),
        "nan": why_it_stops([mine, overflow, mine]),
        "unreadable": why_it_stops(batches_until_one_cannot_be_read(mine)),
    }


def batches_until_one_cannot_be_read(mine):
    """In rank 1."""
    yield mine
    if comm.get_rank() == 1:
        raise OSError("image 7 cannot be read")
    yield mine


def why_it_stops(batches):
    try:
        step_on(batches)
    except (DataError, FloatingPointError) as error:
        return str(error)


if __name__ in ("__main__", "__mp_main__"):  # the latter in processes that it spawns; the tests only read from it
    train_net.Trainer = ObservedTrainer

if __name__ == "__main__":
    launch_tool(train_net.main, default_argument_parser().parse_args())
