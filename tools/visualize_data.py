#!/usr/bin/env python
"""Show the long tail of a dataset: a picture of its category counts, and a table of what each tail rule selects.

    python tools/visualize_data.py lvis_v1_train --output tail.png
    python tools/visualize_data.py /data/mine/train.json --output tail.png --lambda 0.001 0.01

The dataset is a registered name, an annotation file in COCO or LVIS format, or a counts file of
tools/make_class_counts.py.
"""

import argparse
import sys

from detectron2.data import DatasetCatalog

from eql_d2 import ClassFrequencies, TailRule
from eql_d2.data.frequencies import SHIPPED_COUNTS, read_json
from eql_d2.drawing.tail import default_rules, describe_data, plot_data
from eql_d2.engine import one_line_errors


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="registered dataset, annotation file, or counts file")
    parser.add_argument("--output", required=True, help="PNG to write")
    parser.add_argument(
        "--lambda",
        dest="lambdas",
        nargs="+",
        type=float,
        default=[],
        metavar="SHARE",
        help="more rules: categories in a smaller share of the images are tail",
    )
    parser.add_argument(
        "--max-images",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="more rules: categories with at most N images are tail",
    )
    return parser.parse_args()


def read_frequencies(dataset: str) -> ClassFrequencies:
    if dataset in SHIPPED_COUNTS or dataset in DatasetCatalog.list():
        return ClassFrequencies.from_dataset(dataset)
    if "image_count" in read_json(dataset):
        return ClassFrequencies.from_counts_file(dataset)
    return ClassFrequencies.from_annotations(dataset)


def main() -> int:
    args = parse_args()
    with one_line_errors():
        print(f"counting {args.dataset} ...", flush=True)
        frequencies = read_frequencies(args.dataset)
        rules = default_rules(frequencies)
        rules += [TailRule(lambda_=value) for value in args.lambdas]
        rules += [TailRule(max_image_count=count) for count in args.max_images]
        print(describe_data(frequencies, rules))
        plot_data(frequencies, rules, args.output)
    print(f"picture: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
