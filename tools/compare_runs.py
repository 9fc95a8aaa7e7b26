#!/usr/bin/env python
"""Print a table of finished runs, with mean and spread over seeds.

python tools/compare_runs.py output/mini/*
"""

import argparse
import sys

from eql_d2.evaluation.compare import compare_runs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="output folders of tools/train_net.py")
    parser.add_argument("--task", default="bbox", choices=("bbox", "segm"), help="default: bbox")
    parser.add_argument("--dataset", help="which test set, where the runs have several")
    args = parser.parse_args()
    try:
        print(compare_runs(args.runs, args.task, args.dataset))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
