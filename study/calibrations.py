#!/usr/bin/env python
"""What correcting the scores of finished MiniLVIS runs gains: tuned on one half of the images, measured on the other.

    python -m study.calibrations                     # the runs of `python -m study --studies calibration`
    python -m study.calibrations --categories 1203   # those of `python -m study.scale` on seed 0

Each result is a line of calibration.jsonl in docs/benchmark or docs/benchmark_1203. What is there is not made again, so
it goes on where it was stopped.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tabulate import tabulate

from eql_d2.engine.sweep import Sweep
from study.plan import studies
from study.seeds import with_interval

DOCS = Path(__file__).parents[1] / "docs"
FOLDERS = {90: "benchmark", 1203: "benchmark_1203"}  # categories -> of the results, and of the runs
ON_1203 = ("softmax", "sigmoid", "EQL", "RFS")  # of seed 0
FILE = "calibration.jsonl"
# Name in the table -> calibration, its strengths, and further arguments.
GRIDS = {
    "LogitAdjustment": ("LogitAdjustment", (0, 0.25, 0.5, 1), {}),
    "NorCal": ("NorCal", (0, 0.3, 0.6, 1), {}),
    "FRACAL": ("FRACAL", (0, 0.5, 1, 2), {}),
    "FRACAL, SPACE 0": ("FRACAL", (0, 0.5, 1, 2), {"space": 0.0}),
    "LogN": ("LogN", (0, 0.25, 0.5, 1), {}),
}
METRICS = ("AP", "APr")
KEPT = ("metric", "strength", "none", "tuned", "gain", "low", "high", "verdict")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--categories", type=int, choices=FOLDERS, default=90, help="of the set (default: 90)")
    parser.add_argument("--output", type=Path, help="of the runs; default: output/benchmark, output/benchmark_1203")
    parser.add_argument("--results", type=Path, help="default: docs/benchmark, docs/benchmark_1203")
    args = parser.parse_args()
    output = args.output or Path("output", FOLDERS[args.categories])
    results = args.results or DOCS / FOLDERS[args.categories]
    for folder, variant, seed, name in missing(runs(args.categories), output, results):
        for line in measure(folder, variant, seed, name):
            print(line, flush=True)
            with (results / FILE).open("a") as file:
                file.write(json.dumps(line) + "\n")
    print(f"results: {results / FILE}")


def runs(categories: int) -> list[tuple[str, int]]:
    """(variant, seed) whose scores are corrected."""
    if categories == 1203:
        return [(name, 0) for name in ON_1203]
    return [(row.variant.name, seed) for row in studies()["calibration"] for seed in row.variant.seeds]


def missing(runs: list[tuple[str, int]], output: Path, results: Path) -> Iterator[tuple[Path, str, int, str]]:
    """Finished runs and calibrations without a result."""
    done = {(line["variant"], line["seed"], line["calibration"]) for line in load(results)}
    for name, seed in runs:
        folder = output / name / str(seed)
        if (folder / "model_final.pth").exists():
            yield from ((folder, name, seed, n) for n in GRIDS if (name, seed, n) not in done)


def measure(folder: Path, variant: str, seed: int, name: str) -> list[dict]:
    """A line for each metric that the strength is tuned by."""
    calibration, strengths, options = GRIDS[name]
    sweep = Sweep(strengths, calibration=calibration, options=options, tune=METRICS, statistics_images=1500)
    lines = []
    for row in sweep.run(folder)[1]:
        numbers = {key: round(v, 3) if isinstance(v, float) else v for key, v in row.items() if key in KEPT}
        lines.append({"variant": variant, "seed": seed, "calibration": name, **numbers})
    return lines


def load(results: Path) -> list[dict]:
    path = results / FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def calibration_table(results: Path) -> str:
    """A row for each variant and calibration, the seeds in their order in each cell."""
    of: dict[tuple[str, str], list[dict]] = {}
    for line in load(results):
        of.setdefault((line["variant"], line["calibration"]), []).append(line)
    rows = []
    for (variant, calibration), lines in of.items():
        row = {"run": f"`{variant}`", "calibration": f"`{calibration}`"}
        for metric in METRICS:
            chosen = [line for line in lines if line["metric"] == metric]
            row[f"{metric}, without"] = ", ".join(f"{c['none']:.1f}" for c in chosen)
            row[f"strength by {metric}"] = ", ".join(f"{c['strength']:g}" for c in chosen)
            row[f"{metric}, gain"] = ", ".join(with_interval(c["gain"], c["low"], c["high"]) for c in chosen)
        rows.append(row)
    return tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)


if __name__ == "__main__":
    main()
