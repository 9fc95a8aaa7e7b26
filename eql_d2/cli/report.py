"""Compare runs on one HTML page, which needs no network: results, curves, AP by frequency, calibration, examples.

    eql-d2 report output/mini/* --output report.html

Runs whose configs differ only in the seed are one configuration. The first one is what the others are compared with.
"""

import argparse
import importlib
import logging
import sys
from functools import partial


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folders of training")
    parser.add_argument("--output", default="report.html", help="HTML file to write, default report.html")
    parser.add_argument("--task", default="bbox", choices=("bbox", "segm"), help="default: bbox")
    parser.add_argument("--dataset", help="test set to report, default: the first one of DATASETS.TEST")
    parser.add_argument("--unfinished", action="store_true", help="report runs not evaluated at their end, too")
    parser.add_argument("--images", type=int, default=6, help="example images, default 6")


def run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from eql_d2.report import read_runs, write_report

    importlib.import_module("eql_d2.registration")  # runs on MiniLVIS are read, too

    logging.getLogger("detectron2").setLevel(logging.WARNING)
    progress = partial(tqdm, desc="runs", unit="run")
    comparison = read_runs(args.runs, args.task, args.dataset, progress, args.unfinished)
    for folder, reason in comparison.skipped.items():
        print(f"skipped {folder}: {reason}", file=sys.stderr)
    write_report(comparison, args.output, args.images, partial(tqdm, desc="report"))
    labels = ", ".join(f"{c.label} ({len(c.runs)} runs)" for c in comparison.configurations)
    print(f"compared {labels} by {comparison.task} on {comparison.dataset}; skipped {len(comparison.skipped)} folders")
    print(f"report: {args.output}")
