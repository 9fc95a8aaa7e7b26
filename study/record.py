"""What is kept of a run: a line of a JSONL file, from which the tables are made."""

import json
import platform
import statistics
from pathlib import Path

import torch

from eql_d2.engine.sweep import Sweep
from eql_d2.evaluation.compare import METRICS as GROUPS
from eql_d2.evaluation.run_folder import read_run

RUNS = "runs.jsonl"  # in the folder of results
CAPS = (300, 50, 25)  # detections an image; "fixed" is without a cap
# Of the analysis of an evaluation (docs/evaluation.md), in percent.
KEPT = ("ECE-r", "ECE-f", "right-r", "confused-r-f", "confused-c-f")


def record(folder: Path) -> dict:
    """Measure a finished run.

    Args:
        folder: output of tools/train_net.py.

    Returns:
        ``{"python", "torch", "tail": rule, "seconds_per_iteration": median,
        "AP": {cap: {"AP", "APr", "APc", "APf"}}, "AP-segm": the same or {}, "analysis": {name: percent}, "balance":
        last value of each curve of :class:`GradientBalance`, "categories": lists with one entry a category of training
        "images" and "instances", "group", "AP", and "positive" and "negative" gradient, summed over the training}``
    """
    run = read_run(folder, "bbox", None)
    positive, negative = zip(*run.gradients)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tail": run.analysis["tail_rule"],
        "seconds_per_iteration": rounded(statistics.median(run.curves["time"].values())),
        "AP": average_precisions(folder, run.metrics),
        "AP-segm": masks(folder) if run.config["MODEL"]["MASK_ON"] else {},
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


def average_precisions(folder: Path, metrics: dict) -> dict:
    """Cap -> AP and, of the groups that there are, APr, APc and APf, in percent."""
    by_cap = {str(scores["detections"]): of_groups(scores) for scores in Sweep(detections=CAPS).rows(folder)}
    by_cap["fixed"] = {group: rounded(metrics[f"{group}-fixed"]) for group in by_cap["300"]}
    return by_cap


def masks(folder: Path) -> dict:
    return {"300": of_groups(read_run(folder, "segm", None).metrics)}


def of_groups(scores: dict) -> dict:
    return {group: rounded(scores[group]) for group in GROUPS if group in scores}


def rounded(value: float | None) -> float | None:
    """Five digits: more than any of them means, and a short file. None, where nothing is known, stays."""
    return None if value is None else float(f"{value:.5g}")


def append(results: Path, line: dict) -> None:
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")


def load(results: Path) -> dict[str, dict[int, dict]]:
    """Method -> seed -> line; of two of one run the later."""
    records: dict[str, dict[int, dict]] = {}
    for line in results.read_text().splitlines() if results.exists() else ():
        record = json.loads(line)
        records.setdefault(record["method"], {})[record["seed"]] = record
    return records
