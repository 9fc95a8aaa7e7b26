#!/usr/bin/env python
"""Measure what this package makes fast beside the implementations it replaces.

    python -m speed
    python -m speed --sections inference --repeats 5 --output benchmark.json
    python -m speed --sections losses --plot losses.png

Time: CPU time of the process, on one core; median of repeats that alternate between the variants.
Memory (Linux): how far one call raises the peak of the resident set above what is resident before it, in a fresh
process for each variant, in a second call, so that inputs, imports and code pages do not count. Section `losses`: the
peak of what torch's allocator hands out, in sizes of the logits.
"""

import argparse
import functools
import json

import torch
import torchvision
from tabulate import tabulate

from speed.cases import CASES, measure
from speed.dense import benchmark_dense
from speed.losses import benchmark_losses, plot_losses
from speed.startup import benchmark_files, benchmark_startup

SECTIONS = {
    **{name: functools.partial(measure, name) for name in CASES},
    "losses": benchmark_losses,
    "dense": benchmark_dense,
    "startup": benchmark_startup,
    "files": benchmark_files,
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all")
    parser.add_argument("--repeats", type=int, default=3, help="rounds that count (default: 3)")
    parser.add_argument("--output", help="JSON file to write the rows to")
    parser.add_argument("--plot", help="file to draw the section `losses` to")
    parser.add_argument(
        "--before", help="folder of a checkout of another version, which the section `files` measures too"
    )
    return parser.parse_args()


def main(args):
    torch.set_num_threads(1)
    if args.plot and "losses" not in args.sections:
        raise SystemExit("--plot draws the section losses: add it to --sections")
    rows = []
    for section in args.sections:
        extra = [args.before] if section == "files" else []
        rows_of_section = SECTIONS[section](args.repeats, *extra)
        print(tabulate(rows_of_section, headers="keys", floatfmt=".4g"), end="\n\n", flush=True)
        rows += rows_of_section
    if args.plot:
        plot_losses([row for row in rows if row["section"] == "losses"], args.plot)
    if args.output:
        versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
        with open(args.output, "w") as f:
            json.dump({"versions": versions, "repeats": args.repeats, "rows": rows}, f, indent=1)


if __name__ == "__main__":
    main(parse_args())
