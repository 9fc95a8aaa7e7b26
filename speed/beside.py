#!/usr/bin/env python
"""Time a step of each loss beside that of another checkout of this package, such as an earlier commit.

    git worktree add /tmp/earlier 862c63d
    python -m speed.beside /tmp/earlier
    python -m speed.beside /tmp/earlier --rois 128 --classes 90 --losses EqualizationLoss

A process for each checkout; they take turns, loss by loss, so that both meet the same machine. Forward and backward,
CPU time, one thread; the lower quartile of the rounds, since what disturbs only adds.
"""

import argparse
import inspect
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate
from torch.nn import functional as F

HERE = Path(__file__).parents[1]
BCE = "BCE, prebuilt target"


def serve(R: int, K: int) -> None:
    """Tell where the package and what the losses are; then read "number name", answer the seconds of such a step."""
    import eql_d2  # of the checkout that is first on the path

    torch.set_num_threads(1)
    torch.manual_seed(0)
    gt_classes = torch.where(torch.rand(R) < 0.25, torch.randint(0, K, (R,)), K)
    features = torch.rand(R, 1024)
    target = F.one_hot(gt_classes, K + 1)[:, :K].float()
    lvis = eql_d2.ClassFrequencies.from_dataset("lvis_v1_train")
    which = torch.arange(K) * len(lvis) // K
    counts = (torch.as_tensor(x)[which] for x in (lvis.image_count, lvis.instance_count))
    frequencies = eql_d2.ClassFrequencies(*counts, lvis.num_images)

    def step_of(loss, width: int):
        logits = (torch.randn(R, width) - 4).requires_grad_()

        def step():
            logits.grad = None
            loss(logits).backward()

        return step

    steps = {BCE: step_of(lambda z: F.binary_cross_entropy_with_logits(z, target, reduction="sum") / R, K)}
    for name, loss_class in eql_d2.CLS_LOSS_REGISTRY:
        takes_counts = "frequencies" in inspect.signature(loss_class.__init__).parameters
        loss = loss_class(K, **({"frequencies": frequencies} if takes_counts else {}))
        steps[name] = step_of(lambda z, loss=loss: loss(z, gt_classes, features), loss.num_logits)
    print(eql_d2.__file__, *steps, sep="\t", flush=True)
    for line in sys.stdin:
        number, name = line.rstrip("\n").split(" ", 1)
        steps[name]()  # into the caches
        start = time.process_time()
        for _ in range(int(number)):
            steps[name]()
        print((time.process_time() - start) / int(number), flush=True)


class Server:
    """:func:`serve` in a process of its own, with the package of ``checkout``."""

    def __init__(self, checkout: Path, R: int, K: int):
        # The other checkout may have no such file: this one, with the other's package.
        serve = f"runpy.run_path({__file__!r})['serve']({R}, {K})"
        code = f"import runpy, sys; sys.path.insert(0, {str(checkout)!r}); {serve}"
        command = [sys.executable, "-W", "ignore", "-c", code]
        # Memory is kept: whether glibc gives it back after a step, to be cleared anew, is chance and up to half a step.
        kept = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**31)}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **kept}
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
        )
        package, *self.names = self.process.stdout.readline().rstrip("\n").split("\t")
        if not Path(package).is_relative_to(checkout):
            raise SystemExit(f"{checkout} does not hold the package: what was imported is {package or 'nothing'}")

    def seconds(self, name: str, number: int) -> float:
        self.process.stdin.write(f"{number} {name}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def compare(other: Path, R: int, K: int, names: list[str], rounds: int) -> list[dict]:
    servers = Server(other, R, K), Server(HERE, R, K)
    names = [name for name in servers[1].names if name == BCE or not names or name in names]
    number = max(3, round(2e6 / (R * K)))
    seconds = {name: ([], []) for name in names}
    for i in range(rounds):
        for name in names:
            for which in (0, 1) if i % 2 else (1, 0):
                if name in servers[which].names:
                    seconds[name][which].append(servers[which].seconds(name, number))
    rows = []
    for name, times in seconds.items():
        before, now = (np.quantile(t, 0.25) if t else None for t in times)
        row = {"loss": name, "other, ms": before and before * 1e3, "this, ms": now * 1e3}
        rows.append(row | {"this / other": before and now / before})
    for row in rows:
        row["x BCE"] = row["this, ms"] / rows[0]["this, ms"]
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="folder of the other checkout")
    parser.add_argument("--rois", type=int, default=512)
    parser.add_argument("--classes", type=int, default=1203)
    parser.add_argument("--losses", nargs="+", default=[], help="names (default: all)")
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    rows = compare(args.checkout.resolve(), args.rois, args.classes, args.losses, args.rounds)
    print(f"{args.rois} x {args.classes}, {args.rounds} rounds")
    print(tabulate(rows, headers="keys", floatfmt=".3g"))


if __name__ == "__main__":
    main()
