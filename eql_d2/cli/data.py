"""Show the long tail of a dataset: a picture of its category counts, and a table of what each tail rule selects.

    eql-d2 data lvis_v1_train --output tail.png
    eql-d2 data /data/mine/train.json --output tail.png --lambda 0.001 0.01

The dataset is a registered name, an annotation file in COCO or LVIS format, or a counts file of `eql-d2 counts`.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
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


def run(args: argparse.Namespace) -> None:
    import eql_d2.registration  # noqa: F401  (MiniLVIS is a dataset's name, too)
    from eql_d2.data.frequencies import TailRule
    from eql_d2.drawing.tail import default_rules, describe_data, plot_data

    print(f"counting {args.dataset} ...", flush=True)
    frequencies = read_frequencies(args.dataset)
    rules = default_rules(frequencies)
    rules += [TailRule(lambda_=value) for value in args.lambdas]
    rules += [TailRule(max_image_count=count) for count in args.max_images]
    print(describe_data(frequencies, rules))
    plot_data(frequencies, rules, args.output)
    print(f"picture: {args.output}")


def read_frequencies(dataset: str):
    from detectron2.data import DatasetCatalog

    from eql_d2.data.frequencies import SHIPPED_COUNTS, ClassFrequencies, read_json

    if dataset in SHIPPED_COUNTS or dataset in DatasetCatalog.list():
        return ClassFrequencies.from_dataset(dataset)
    if "image_count" in read_json(dataset):
        return ClassFrequencies.from_counts_file(dataset)
    return ClassFrequencies.from_annotations(dataset)
