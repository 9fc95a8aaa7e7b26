#!/usr/bin/env python
"""Compare runs on one HTML page, which needs no network: results, curves, AP by frequency, calibration, examples.

    python tools/report.py output/mini/* --output report.html

Runs whose configs differ only in the seed are one configuration. The first one is what the others are compared with.
"""

import argparse
import logging
import sys
from functools import partial

from tqdm import tqdm

from eql_d2.engine import one_line_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folders of tools/train_net.py")
    parser.add_argument("--output", default="report.html", help="HTML file to write, default report.html")
    parser.add_argument("--task", default="bbox", choices=("bbox", "segm"), help="default: bbox")
    parser.add_argument("--dataset", help="test set to report, default: the first one of DATASETS.TEST")
    parser.add_argument("--images", type=int, default=6, help="example images, default 6")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    logging.getLogger("detectron2").setLevel(logging.WARNING)
    with one_line_errors():
        from eql_d2.report import read_runs, write_report
    with one_line_errors():
        comparison = read_runs(args.runs, args.task, args.dataset, partial(tqdm, desc="runs", unit="run"))
        for folder, reason in comparison.skipped.items():
            print(f"skipped {folder}: {reason}", file=sys.stderr)
        write_report(comparison, args.output, args.images, partial(tqdm, desc="report"))
    labels = ", ".join(f"{c.label} ({len(c.runs)} runs)" for c in comparison.configurations)
    print(f"compared {labels} by {comparison.task} on {comparison.dataset}; skipped {len(comparison.skipped)} folders")
    print(f"report: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
