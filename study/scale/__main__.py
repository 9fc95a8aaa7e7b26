#!/usr/bin/env python
"""Train methods with published LVIS figures on 1,203 categories, and write what their order here says of LVIS.

    python -m study.scale --list             # what is left, and about how long it takes
    python -m study.scale --jobs 2           # go on; one line of docs/benchmark_1203/runs.jsonl a run
    python -m study.scale --tables           # only write the README, docs/benchmark_1203.md and its figure anew
    python -m study.scale --only RFS --seeds 9

A run with a line is not made again; one that was stopped goes on from its last checkpoint.
"""

import argparse
import sys
from pathlib import Path

from eql_d2.data.registration import datasets_root
from study.__main__ import ROOT, commit
from study.runs import Workshop, missing, train_all
from study.scale.documents import write_documents
from study.scale.plan import SEEDS, TUNING_SEED, methods, runs
from study.scale.runs import minutes_left, train

RESULTS = ROOT / "docs" / "benchmark_1203" / "runs.jsonl"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = list(methods())
    parser.add_argument("--only", nargs="+", choices=known, metavar="METHOD", help=f"of {', '.join(known)}")
    parser.add_argument("--seeds", nargs="+", type=int, choices=[TUNING_SEED, *SEEDS], metavar="SEED", default=SEEDS)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, 3 GB and one core each (default: 2)")
    parser.add_argument("--output", type=Path, default=Path("output/benchmark_1203"), help="weights and logs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: docs/benchmark_1203/runs.jsonl")
    parser.add_argument("--list", action="store_true", help="print what would be trained, and end")
    parser.add_argument("--tables", action="store_true", help="train nothing")
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error("--jobs must be at least 1")
    return args


def main():
    args = parse_arguments()
    plan = [(m, seed) for m, seed in runs(tuple(args.seeds)) if not args.only or m.name in args.only]
    todo = [] if args.tables else missing(plan, args.results)
    minutes = minutes_left(todo, args.results, args.jobs)
    left = f"{len(todo)} runs to make" + ("" if minutes is None else f", about {minutes:.0f} minutes")
    if args.list:
        print("\n".join([*(f"{method.name}, seed {seed}" for method, seed in todo), left]))
        return
    print(left)
    workshop = Workshop(datasets_root().absolute(), args.output.absolute(), args.results, commit())
    failures = train_all(todo, args.jobs, workshop, train) if todo else {}
    print("\n".join(f"{run}: {reason}" for run, reason in failures.items()))
    print("\n".join(f"written: {path}" for path in write_documents(args.results, ROOT)))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
