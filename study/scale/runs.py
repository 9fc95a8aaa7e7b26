"""Trains and evaluates what has no line yet in the JSONL, which grows by one line a run."""

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

from eql_d2.engine.sweep import Sweep
from study.record import of_groups
from study.runs import RECORDING, TRAIN_NET, Workshop, shown
from study.scale.plan import Method, methods

CAPS = (300, 150)  # detections an image; 150 are to 6 objects an image what 300 are to LVIS's 13
KEPT = ("model_final.pth", "log.txt", "benchmark_log.txt")
PREPARING, WRITING = threading.Lock(), threading.Lock()


def load(results: Path) -> dict[str, dict[int, dict]]:
    """Method -> seed -> line; of two of one run the later."""
    records: dict[str, dict[int, dict]] = {}
    for line in results.read_text().splitlines() if results.exists() else ():
        record = json.loads(line)
        records.setdefault(record["method"], {})[record["seed"]] = record
    return records


def missing(plan: list[tuple[Method, int]], results: Path) -> list[tuple[Method, int]]:
    records = load(results)
    return [(method, seed) for method, seed in plan if seed not in records.get(method.name, {})]


def minutes_left(todo: list, results: Path, jobs: int) -> float | None:
    """By the mean of the runs that were made in one go; None before the first."""
    records = [record for of_method in load(results).values() for record in of_method.values()]
    seconds = [record["seconds"] for record in records if not record["resumed"]]
    return len(todo) * sum(seconds) / len(seconds) / jobs / 60 if seconds else None


def train(method: Method, seed: int, workshop: Workshop) -> None:
    """One run, in a process of its own on one core; appends its line to ``workshop.results``."""
    folder = workshop.output / method.name / str(seed)
    folder.mkdir(parents=True, exist_ok=True)
    require_first_stage(method, seed, workshop)
    with PREPARING:  # one at a time generates the data
        arguments = method.arguments(seed, workshop.datasets, workshop.output)
    log, resumed = folder / "benchmark_log.txt", (folder / "last_checkpoint").exists()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(workshop.datasets)}
    start = time.monotonic()
    with log.open("a") as out:
        process = subprocess.Popen([sys.executable, TRAIN_NET, *arguments], env=env, stdout=out, stderr=out)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"train_net.py ended with {process.returncode}; its log is {log}")
    line = {
        "method": method.name,
        "seed": seed,
        "commit": workshop.commit,
        "arguments": shown(arguments, workshop),
        "resumed": resumed,  # the cost is that of the last part
        "seconds": round(time.monotonic() - start),
        **cost(usage),
    }
    with RECORDING:
        line["AP"] = average_precisions(folder)
    with WRITING, workshop.results.open("a") as file:
        file.write(json.dumps(line) + "\n")
    clear(folder)


def require_first_stage(method: Method, seed: int, workshop: Workshop) -> None:
    """Train the first stage again where its line is there and its weights are not, as on another machine."""
    if method.first_stage is None:
        return
    weights = workshop.output / method.first_stage / str(seed) / "model_final.pth"
    if not weights.exists():
        train(methods()[method.first_stage], seed, workshop)


def cost(usage: resource.struct_rusage) -> dict[str, float]:
    return {
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime),
        "peak_GB": round(usage.ru_maxrss / 2**20, 2),
    }


def average_precisions(folder: Path) -> dict[str, dict[str, float]]:
    """Cap -> AP, APr, APc, APf, in percent."""
    return {str(scores["detections"]): of_groups(scores) for scores in Sweep(detections=CAPS).rows(folder)}


def clear(folder: Path) -> None:
    """Leave the weights and the log: detections are 100 MB."""
    for path in folder.iterdir():
        if path.name not in KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
