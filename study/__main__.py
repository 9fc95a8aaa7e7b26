#!/usr/bin/env python
"""Train every loss on MiniLVIS under one protocol, and write the tables and figures of docs/benchmark.md.

    python -m study --list
    python -m study --jobs 2
    python -m study --studies losses --only EqualizationLoss SigmoidCrossEntropy --seeds 1 2

A run whose result is there is not made again, and one that was stopped goes on from its last checkpoint. Tables and
figures are of all results that there are.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from eql_d2.data.registration import datasets_root
from study.digits import train_digits
from study.documents import write_documents
from study.figures import write_figures
from study.plan import planned, studies
from study.record import RUNS
from study.runs import Workshop, missing, train_all

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "benchmark"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [*studies(), "digits"]
    parser.add_argument("--studies", nargs="+", choices=known, default=known, metavar="STUDY", help=f"of {known}")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="names of variants, as --list shows them")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="of the variants' own seeds, only these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time (default: one a core)")
    parser.add_argument("--output", type=Path, default=Path("output/benchmark"), help="default: output/benchmark")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="folder of runs.jsonl, a line a run (default: docs/benchmark)"
    )
    parser.add_argument("--list", action="store_true", help="print what would be trained, and end")
    args = parser.parse_args()
    if args.jobs < 1:
        parser.error("--jobs must be at least 1")
    return args


def chosen_variants(args) -> list:
    """Those of the studies; an unknown name is an error that lists them."""
    rows = [row for study in args.studies for row in studies().get(study, [])]
    variants = {row.variant.name: row.variant for row in rows}
    unknown = set(args.only or ()) - set(variants)
    if unknown:
        sys.exit(f"error: --only {' '.join(sorted(unknown))}: none of {', '.join(variants)}")
    return [v for v in variants.values() if not args.only or v.name in args.only]


def main():
    args = parse_arguments()
    results = args.results / RUNS
    workshop = Workshop(datasets_root().absolute(), args.output.absolute(), results, commit())
    runs = missing(planned(chosen_variants(args)), results)
    runs = [run for run in runs if not args.seeds or run[1] in args.seeds]
    if args.list:
        print("\n".join(f"{variant.name}, seed {seed}" for variant, seed in runs))
        print(f"{len(runs)} runs to make; results are in {results}")
        return
    failures = train_all(runs, args.jobs, workshop)
    if "digits" in args.studies:
        train_digits(args.results)
    made = write_documents(args.results, ROOT) + write_figures(args.results, ROOT / "docs" / "figures" / "benchmark")
    print("\n".join(f"{run}: {reason}" for run, reason in failures.items()))
    print(f"{len(runs) - len(failures)} runs made, {len(failures)} failed; results: {results}")
    print("\n".join(f"written: {path}" for path in made))
    sys.exit(1 if failures else 0)


def commit() -> str:
    """The commit of the code, with a plus if it was changed since."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=7", "--exclude=*"]
    described = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return described.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
