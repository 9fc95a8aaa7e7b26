"""Trains and evaluates what has no result yet, several at a time; where one fails the rest goes on."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from study.plan import Variant
from study.record import record, save

RECORDING = threading.Lock()  # it registers datasets, and Detectron2's catalogs are one for all threads
TRAIN_NET = Path(__file__).parents[1] / "tools" / "train_net.py"


@dataclass(frozen=True)
class Workshop:
    """Where things are.

    Args:
        datasets: MiniLVIS sets are made here.
        output: of the trainings.
        results: one JSON file a run.
        commit: of the code that runs.
    """

    datasets: Path
    output: Path
    results: Path
    commit: str

    def result(self, variant: Variant, seed: int) -> Path:
        return self.results / variant.name / f"{seed}.json"


def missing_runs(variants: list[Variant], workshop: Workshop) -> list[tuple[Variant, int]]:
    """(variant, seed) without a result, each once: all variants of a seed before the next, for an even table."""
    seeds = sorted({seed for variant in variants for seed in variant.seeds})
    runs = {(v.name, seed): (v, seed) for seed in seeds for v in variants if seed in v.seeds}
    return [run for run in runs.values() if not workshop.result(*run).exists()]


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

    def one(variant: Variant, seed: int) -> None:
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


def train_variant(variant: Variant, seed: int, workshop: Workshop) -> None:
    """One run, in a process of its own on one core, which goes on where an earlier one was stopped."""
    arguments = variant.arguments(seed, workshop.datasets, workshop.output)
    folder = workshop.output / variant.name / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "benchmark_log.txt"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(workshop.datasets)}
    with log.open("a") as out:
        result = subprocess.run([sys.executable, TRAIN_NET, *arguments], env=env, stdout=out, stderr=subprocess.STDOUT)
    if result.returncode:
        raise RuntimeError(f"train_net.py ended with {result.returncode}; its log is {log}")
    with RECORDING:
        save(workshop.result(variant, seed), record(folder, shown(arguments, workshop), workshop.commit))


def shown(arguments: list, workshop: Workshop) -> list:
    """The arguments with names in place of this machine's folders."""
    places = ((str(TRAIN_NET.parents[1]) + "/", ""), (str(workshop.datasets.resolve()), "$DETECTRON2_DATASETS"))
    places += ((str(workshop.datasets), "$DETECTRON2_DATASETS"), (str(workshop.output), "output/benchmark"))
    for place, name in places:
        arguments = [argument.replace(place, name) for argument in arguments]
    return arguments
