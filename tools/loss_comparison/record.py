"""What is kept of a run: one small JSON file, from which the tables are made."""

import json
import platform
import statistics
from pathlib import Path
from typing import Optional

import torch
from detectron2.data import DatasetCatalog

from eql_d2.engine.sweep import Scorer, config_of_run, saved_detections
from eql_d2.report.runs import read_run

CAPS = (300, 50, 25)  # detections an image; "fixed" is without a cap
GROUPS = ("AP", "APr", "APc", "APf")
# Of the analysis of an evaluation (docs/evaluation.md), in percent.
KEPT = ("ECE-r", "ECE-f", "right-r", "confused-r-f", "confused-c-f")


def record(folder: Path, arguments: list, commit: str) -> dict:
    """Measure a finished run.

    Args:
        folder: output of tools/train_net.py.
        arguments: what it was called with.
        commit: of the code.

    Returns:
        ``{"commit", "arguments", "python", "torch", "tail": rule, "seconds_per_iteration": median,
        "AP": {cap: {"AP", "APr", "APc", "APf"}}, "AP-segm": the same or {}, "analysis": {name: percent}, "balance":
        last value of each curve of :class:`GradientBalance`, "categories": lists with one entry a category of training
        "images" and "instances", "group", "AP", and "positive" and "negative" gradient, summed over the training}``
    """
    cfg = config_of_run(folder)
    (name,) = cfg.DATASETS.TEST
    DatasetCatalog.get(name)  # sets the metadata
    run = read_run(folder, "bbox", name)
    positive, negative = zip(*run.gradients)
    return {
        "commit": commit,
        "arguments": arguments,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tail": run.analysis["tail_rule"],
        "seconds_per_iteration": rounded(statistics.median(run.curves["time"].values())),
        "AP": average_precisions(cfg, folder, name, run.metrics),
        "AP-segm": masks(folder, name) if cfg.MODEL.MASK_ON else {},
        "analysis": {key: rounded(run.metrics[key]) for key in KEPT if key in run.metrics},
        "balance": {
            key.removeprefix("balance/"): rounded(curve[max(curve)])
            for key, curve in run.curves.items()
            if key.startswith("balance/")
        },
        "categories": {
            "images": [int(c["train_images"]) for c in run.categories],
            "instances": [int(c["train_instances"]) for c in run.categories],
            "group": [c["group"] for c in run.categories],
            "AP": [rounded(c["AP"]) for c in run.categories],
            "positive": list(map(rounded, positive)),
            "negative": list(map(rounded, negative)),
        },
    }


def average_precisions(cfg, folder: Path, name: str, metrics: dict) -> dict:
    """Cap -> AP and, of the groups that there are, APr, APc and APf, in percent."""
    detections = saved_detections(folder, name, "bbox")
    score = Scorer.of_dataset(cfg, name, "bbox")
    by_cap = {}
    for cap in CAPS:
        scores = score(detections, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, cap)
        by_cap[str(cap)] = {group: rounded(scores[group]) for group in GROUPS if group in scores}
    by_cap["fixed"] = {group: rounded(metrics[f"{group}-fixed"]) for group in by_cap["300"]}
    return by_cap


def masks(folder: Path, name: str) -> dict:
    metrics = read_run(folder, "segm", name).metrics
    return {"300": {group: rounded(metrics[group]) for group in GROUPS if group in metrics}}


def rounded(value: Optional[float]) -> Optional[float]:
    """Five digits: more than any of them means, and a short file. None, where nothing is known, stays."""
    return None if value is None else float(f"{value:.5g}")


def save(path: Path, content: dict) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content) + "\n")
    temporary.replace(path)


def load(results: Path) -> dict:
    """Variant -> {seed: record} of all that is there."""
    records = {}
    for path in sorted(results.glob("*/*.json")):
        records.setdefault(path.parent.name, {})[int(path.stem)] = json.loads(path.read_text())
    return records
