"""What finished runs would score with another calibration, score threshold or detections per image: one table.

    eql-d2 sweep output/mini/softmax_0 --strengths 0 0.25 0.5 1 --detections 300 50 25
    eql-d2 sweep output/mini/* --detections 300 100 25 --thresholds 0.0001 0.05
    eql-d2 sweep output/mini/softmax_0 --calibration FRACAL --strengths 0 0.5 1 2 --tune AP

With --tune the strength that is best on one half of the images is compared with none on the other half, with a 95 %
interval: what was chosen and measured on the same images is no gain yet. Without --strengths the predictions that the
runs have saved are cut, which needs no model. With it the model is run once over the images. A run that is missing or
not written to its end is named and skipped.
"""

import argparse
import csv
import sys
from pathlib import Path

from eql_d2.data.whole_files import make_folder, written_whole
from eql_d2.errors import InputError

CALIBRATIONS = ("LogitAdjustment", "NorCal", "FRACAL", "LogN")  # of eql_d2.modeling.calibration, which needs torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folders of training")
    parser.add_argument("--strengths", nargs="+", type=float, help="of the calibration; 0 is none")
    parser.add_argument("--calibration", choices=CALIBRATIONS, default="LogitAdjustment", help="default: %(default)s")
    parser.add_argument("--space", type=float, metavar="LAMBDA", help="of FRACAL: how much places count (default: 2)")
    parser.add_argument(
        "--tune",
        nargs="+",
        default=(),
        choices=("AP", "APr", "APc", "APf"),
        help="choose the strength by these metrics",
    )
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="drawings for --tune (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the halves and drawings of --tune (default 0)")
    parser.add_argument("--statistics-images", type=int, default=2000, metavar="N", help="of LogN (default 2000)")
    parser.add_argument("--detections", nargs="+", type=int, help="limits per image, -1 for none (default: the run's)")
    parser.add_argument("--thresholds", nargs="+", type=float, help="scores to exceed (default: the run's)")
    parser.add_argument("--task", choices=("bbox", "segm"), default="bbox", help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("sweep.csv"), help="CSV file (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    from detectron2.utils.logger import setup_logger
    from tabulate import tabulate

    from eql_d2.engine.sweep import Sweep, sweep_runs

    setup_logger(name="eql_d2")
    if args.space is not None and args.calibration != "FRACAL":
        raise InputError(f"--space is of FRACAL, but --calibration is {args.calibration}")
    sweep = Sweep(
        strengths=args.strengths,
        detections=args.detections,
        thresholds=args.thresholds,
        calibration=args.calibration,
        task=args.task,
        tune=args.tune,
        drawings=args.bootstrap,
        seed=args.seed,
        options={} if args.space is None else {"space": args.space},
        statistics_images=args.statistics_images,
    )
    rows, tuned, skipped = sweep_runs(args.runs, sweep)
    if rows:
        print(tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".4g"))
        write_table(rows, args.output)
    if tuned:
        print(f"\nchosen on one half of the images, measured on the other, {args.bootstrap} drawings:")
        print(tabulate(tuned, headers="keys", tablefmt="pipe", floatfmt=".4g"))
    for folder, reason in skipped.items():
        print(f"skipped {folder}: {reason}", file=sys.stderr)
    if not rows:
        raise InputError("none of the runs could be read")
    print(f"{len(rows)} rows of {len(args.runs) - len(skipped)} runs: {args.output}")


def write_table(rows: list[dict], path: Path) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    make_folder(path.parent)
    with written_whole(path) as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
