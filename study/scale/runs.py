"""A run on 1,203 categories: what is kept of it, and what it stands on."""

import shutil
from pathlib import Path

from eql_d2.engine.sweep import Sweep
from study.record import load, of_groups
from study.runs import Workshop, train_variant
from study.scale.plan import Method, methods

CAPS = (300, 150)  # detections an image; 150 are to 6 objects an image what 300 are to LVIS's 13
KEPT = ("model_final.pth", "config.yaml", "log.txt", "benchmark_log.txt")


def minutes_left(todo: list, results: Path, jobs: int) -> float | None:
    """By the mean of the runs that were made in one go; None before the first."""
    records = [record for of_method in load(results).values() for record in of_method.values()]
    seconds = [record["seconds"] for record in records if not record["resumed"]]
    return len(todo) * sum(seconds) / len(seconds) / jobs / 60 if seconds else None


def train(method: Method, seed: int, workshop: Workshop) -> None:
    """One run, and before it its first stage where that has a line but no weights, as on another machine."""
    first = method.first_stage
    if first is not None and not (workshop.folder(first, seed) / "model_final.pth").exists():
        train(methods()[first], seed, workshop)
    train_variant(method, seed, workshop, average_precisions)
    clear(workshop.folder(method.name, seed))


def average_precisions(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Cap -> AP, APr, APc, APf, in percent."""
    return {"AP": {str(scores["detections"]): of_groups(scores) for scores in Sweep(detections=CAPS).rows(folder)}}


def clear(folder: Path) -> None:
    """Leave the weights, the config and the log: detections are 100 MB."""
    for path in folder.iterdir():
        if path.name not in KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
