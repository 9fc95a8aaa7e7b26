#!/usr/bin/env python
"""Measure what a training step costs beyond Detectron2's: CPU milliseconds, and kernels that a GPU would launch.

    python -m speed.training_step
    DETECTRON2_DATASETS=... python -m speed.training_step --config LVISv1/eql_mask_rcnn_R_50_FPN_1x.yaml --size 800

Three trainers take steps in turn on one model and the same batch: SimpleTrainer; our TrainStep, which skips steps that
overflow; and TrainStep with the gradient balance. Milliseconds: median over the steps, one core. Kernels: operations
that reach a device's code in a step, without views and allocations. On a CPU each is one call of a kernel, so their
number is what a GPU would launch at least.
"""

import argparse
import statistics
import tempfile
import time

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch.utils._python_dispatch import TorchDispatchMode

from eql_d2 import get_config_file
from eql_d2.engine.gradient_balance import build_gradient_balance
from eql_d2.engine.setup import load_config
from eql_d2.engine.train_step import TrainStep
from eql_d2.engine.trainer import Trainer

CONFIG = "MiniLVIS/eql_faster_rcnn.yaml"
NO_KERNEL = ("empty", "detach", "alias", "lift_fresh", "_local_scalar_dense")  # allocations, and the log's one copy


class Kernels(TorchDispatchMode):
    """Counts the operations that a device would be given."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        returns = func._schema.returns
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        self.count += not is_view and not any(word in func._schema.name for word in NO_KERNEL)
        return func(*args, **(kwargs or {}))


class Steps:
    """A trainer without hooks but the gradient balance."""

    def __init__(self, trainer, balance=None):
        self.trainer, self.balance, self.seconds = trainer, balance, []
        if balance is not None:
            balance.trainer, trainer.max_iter = trainer, 10**6

    def run(self, iteration: int) -> None:
        self.trainer.iter = iteration
        with EventStorage(iteration) as storage:
            self.trainer.storage = storage
            if self.balance is not None:
                self.balance.before_train()
                self.balance.before_step()
            self.trainer.run_step()
            if self.balance is not None:
                self.balance.after_step()
                self.balance.after_train()

    def timed(self, iteration: int) -> None:
        start = time.process_time()
        self.run(iteration)
        self.seconds.append(time.process_time() - start)

    def kernels(self, iteration: int) -> int:
        with Kernels() as counted:
            self.run(iteration)
        return counted.count


def make(config: str, size: int, folder: str) -> dict[str, Steps]:
    """The three of them. Weights are random, and the learning rate is 0, so that all steps are alike."""
    cfg = load_config(get_config_file(config), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "OUTPUT_DIR", folder])
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.BASE_LR", 0.0, "SEED", 0])
    cfg.merge_from_list(["SOLVER.MAX_ITER", 10**6, "SOLVER.CHECKPOINT_PERIOD", 10**6, "SOLVER.STEPS", ()])
    if size:
        cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", (size,), "INPUT.MAX_SIZE_TRAIN", round(size * 5 / 3)])
    model = Trainer.build_model(cfg).train()
    batch = next(iter(Trainer.build_train_loader(cfg)))
    optimizer = Trainer.build_optimizer(cfg, model)
    balance = build_gradient_balance(cfg, model)
    balance._period = 10**6  # its log is another matter: one in GRADIENT_BALANCE_PERIOD steps

    def batches():
        while True:
            yield batch

    return {
        "SimpleTrainer": Steps(SimpleTrainer(model, batches(), optimizer)),
        "TrainStep": Steps(TrainStep(model, batches(), optimizer)),
        "TrainStep, gradient balance": Steps(TrainStep(model, batches(), optimizer), balance),
    }


def measure(config: str, size: int, rounds: int) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        trainers = make(config, size, folder)
        for iteration in range(rounds + 1):  # the first warms up
            for steps in trainers.values():
                steps.timed(iteration)
        kernels = {name: steps.kernels(rounds + 1) for name, steps in trainers.items()}
    seconds = {name: statistics.median(steps.seconds[1:]) for name, steps in trainers.items()}
    stock = "SimpleTrainer"
    return [
        {
            "trainer": name,
            "ms": 1e3 * seconds[name],
            "of its time": seconds[name] / seconds[stock],
            "kernels": kernels[name],
            "more": kernels[name] - kernels[stock],
        }
        for name in trainers
    ]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=CONFIG, help=f"of this package (default: {CONFIG})")
    parser.add_argument("--size", type=int, default=0, help="short side in pixels (default: the config's)")
    parser.add_argument("--rounds", type=int, default=20, help="steps of each that count (default: 20)")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    print(tabulate(measure(args.config, args.size, args.rounds), headers="keys", floatfmt=".4g"))


if __name__ == "__main__":
    main(parse_args())
