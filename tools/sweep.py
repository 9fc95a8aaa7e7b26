#!/usr/bin/env python
"""What finished runs would score with another calibration strength, score threshold or detections per image: one table.

    python tools/sweep.py output/mini/softmax_0 --strengths 0 0.25 0.5 1 --detections 300 50 25
    python tools/sweep.py output/mini/* --detections 300 100 25 --thresholds 0.0001 0.05

Without --strengths the predictions that the runs have saved are cut, which needs no model. With it the model is run
once over the images. A run that is missing or not written to its end is named and skipped.
"""

import argparse
import csv
import sys
from pathlib import Path

from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from eql_d2.engine.sweep import Sweep, sweep_runs
from eql_d2.modeling.calibration import CALIBRATIONS


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="output folders of tools/train_net.py")
    parser.add_argument("--strengths", nargs="+", type=float, help="of the calibration; 0 is none")
    parser.add_argument("--calibration", choices=sorted(CALIBRATIONS), default="LogitAdjustment")
    parser.add_argument("--detections", nargs="+", type=int, help="limits per image, -1 for none (default: the run's)")
    parser.add_argument("--thresholds", nargs="+", type=float, help="scores to exceed (default: the run's)")
    parser.add_argument("--task", choices=("bbox", "segm"), default="bbox")
    parser.add_argument("--output", type=Path, default=Path("sweep.csv"), help="CSV file (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    setup_logger(name="eql_d2")
    sweep = Sweep(args.strengths, args.detections, args.thresholds, args.calibration, args.task)
    rows, skipped = sweep_runs(args.runs, sweep)
    if rows:
        print(tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".4g"))
        columns = list(dict.fromkeys(name for row in rows for name in row))
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with open(args.output, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
    for run, reason in skipped.items():
        print(f"skipped {run}: {reason}", file=sys.stderr)
    if not rows:
        print("error: none of the runs could be read", file=sys.stderr)
        return 1
    print(f"{len(rows)} rows of {len(args.runs) - len(skipped)} runs: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
