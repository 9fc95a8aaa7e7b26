"""Trains and evaluates what has no line yet in a JSONL file, several at a time; where one fails the rest goes on."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from study.record import append, load, record

ALONE = threading.Lock()  # generating data, and reading results: Detectron2's catalogs are one for all threads
TRAIN_NET = Path(__file__).parents[1] / "tools" / "train_net.py"


@dataclass(frozen=True)
class Workshop:
    """Where things are.

    Args:
        datasets: MiniLVIS sets are made here.
        output: of the trainings.
        results: a JSONL, a line a run.
        commit: of the code that runs.
    """

    datasets: Path
    output: Path
    results: Path
    commit: str

    def folder(self, name: str, seed: int) -> Path:
        return self.output / name / str(seed)


def missing(plan: list[tuple], results: Path) -> list[tuple]:
    """(variant, seed) without a line, in the plan's order."""
    records = load(results)
    return [(variant, seed) for variant, seed in plan if seed not in records.get(variant.name, {})]


def train_all(runs: list, jobs: int, workshop: Workshop, train: Callable | None = None) -> dict[str, str]:
    """Train, evaluate and record.

    Args:
        runs: (variant, seed).
        train: what makes a run of these and the workshop; default: :func:`train_variant`.

    Returns:
        run -> what went wrong, with the log to read.
    """
    train = train or train_variant
    finished = {(variant.name, seed): threading.Event() for variant, seed in runs}
    failures = {}

    def one(variant, seed: int) -> None:
        try:
            first = finished.get((variant.first_stage, seed))
            if first:
                first.wait()
            train(variant, seed, workshop)
        finally:
            finished[variant.name, seed].set()

    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(runs), unit="run", smoothing=0.1) as progress:
        futures = {pool.submit(one, *run): f"{run[0].name}, seed {run[1]}" for run in runs}
        for future in as_completed(futures):
            name = futures[future]
            error = future.exception()
            if error:
                failures[name] = f"{type(error).__name__}: {error}"
                progress.write(f"{name}: FAILED: {failures[name]}")
            progress.set_postfix_str(name)
            progress.update()
    return failures


def train_variant(variant, seed: int, workshop: Workshop, measure: Callable[[Path], dict] = record) -> None:
    """One run, which goes on where an earlier one was stopped; appends its line to ``workshop.results``.

    Args:
        variant: has a ``name``, and ``arguments(seed, datasets, output)`` for tools/train_net.py.
        measure: folder of the finished run -> what else its line holds.
    """
    folder = workshop.folder(variant.name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    with ALONE:
        arguments = variant.arguments(seed, workshop.datasets, workshop.output)
    cost = train_net(arguments, folder, workshop)
    made = {"method": variant.name, "seed": seed, "commit": workshop.commit, "arguments": shown(arguments, workshop)}
    with ALONE:
        append(workshop.results, {**made, **cost, **measure(folder)})


def train_net(arguments: list[str], folder: Path, workshop: Workshop) -> dict[str, float]:
    """Call tools/train_net.py in a process of its own on one core; returns what that took."""
    log, resumed = folder / "benchmark_log.txt", (folder / "last_checkpoint").exists()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(workshop.datasets)}
    start = time.monotonic()
    with log.open("a") as out:
        process = subprocess.Popen([sys.executable, TRAIN_NET, *arguments], env=env, stdout=out, stderr=out)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"train_net.py ended with {process.returncode}; its log is {log}")
    return {
        "resumed": resumed,  # the cost is that of the last part
        "seconds": round(time.monotonic() - start),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime),
        "peak_GB": round(usage.ru_maxrss / 2**20, 2),
    }


def shown(arguments: list, workshop: Workshop) -> list:
    """The arguments with names in place of this machine's folders."""
    places = ((str(TRAIN_NET.parents[1]) + "/", ""), (str(workshop.datasets.resolve()), "$DETECTRON2_DATASETS"))
    places += ((str(workshop.datasets), "$DETECTRON2_DATASETS"), (str(workshop.output), "output/benchmark"))
    for place, name in places:
        arguments = [argument.replace(place, name) for argument in arguments]
    return arguments
