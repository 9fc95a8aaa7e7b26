"""Show the long tail of a dataset: its category counts, what each tail rule selects, and what samplers do about it.

    eql-d2 data lvis_v1_train --output tail.png
    eql-d2 data /data/mine/train.json --output tail.png --lambda 0.001 0.01
    eql-d2 data /data/mine/train.json --output tail.png --repeat-threshold 0.001 \\
        --samplers RepeatFactorTrainingSampler InstanceAwareRepeatFactorSampler

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
    parser.add_argument(
        "--samplers",
        nargs="+",
        default=[],
        metavar="NAME",
        help="values of DATALOADER.SAMPLER_TRAIN: what an epoch of each has of rare, common and frequent categories",
    )
    parser.add_argument("--repeat-threshold", type=float, default=0.001, metavar="T", help="default %(default)s (LVIS)")
    parser.add_argument("--repeat-alpha", type=float, default=2.0, metavar="A", help="of E-IRFS, default %(default)s")
    parser.add_argument("--categories", metavar="FILE", help="with --samplers: CSV of every category")


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
    if args.samplers:
        show_samplers(args, frequencies)


def show_samplers(args: argparse.Namespace, frequencies) -> None:
    """Tables of what an epoch has of the categories: all images once, and by each sampler."""
    from detectron2.data.build import filter_images_with_only_crowd_annotations

    from eql_d2.config import default_config
    from eql_d2.data.exposure import Exposure
    from eql_d2.data.train_loader import sampler_from_config
    from eql_d2.data.whole_files import written_whole
    from eql_d2.drawing.sampling import describe_exposure, write_categories

    images = filter_images_with_only_crowd_annotations(read_images(args.dataset))
    cfg = default_config()
    cfg.DATALOADER.REPEAT_THRESHOLD, cfg.DATALOADER.REPEAT_ALPHA = args.repeat_threshold, args.repeat_alpha
    exposures = {}
    for cfg.DATALOADER.SAMPLER_TRAIN in dict.fromkeys(["TrainingSampler", *args.samplers]):
        sampler = sampler_from_config(cfg, images, seed=0)
        exposures[cfg.DATALOADER.SAMPLER_TRAIN] = Exposure.of(sampler, images, len(frequencies))
    print(f"\n{describe_exposure(exposures, frequencies.groups)}")
    if args.categories:
        with written_whole(args.categories, "w") as file:
            write_categories(file, exposures, frequencies.groups)
        print(f"categories: {args.categories}")


def read_images(dataset: str) -> list[dict]:
    """Dataset dicts, with nothing in them but the categories of their objects where it is a file."""
    from collections import defaultdict

    from detectron2.data import DatasetCatalog

    from eql_d2.data.annotations import read_annotations
    from eql_d2.data.registration import categories_of

    if dataset in DatasetCatalog.list():
        return DatasetCatalog.get(dataset)
    data = read_annotations(dataset)
    order = categories_of(data)[1]
    objects = defaultdict(list)
    for a in data["annotations"]:
        objects[a["image_id"]].append({"category_id": order[a["category_id"]], "iscrowd": a.get("iscrowd", 0)})
    return [{"annotations": objects[image["id"]]} for image in data["images"]]


def read_frequencies(dataset: str):
    from detectron2.data import DatasetCatalog

    from eql_d2.data.frequencies import SHIPPED_COUNTS, ClassFrequencies, read_json

    if dataset in SHIPPED_COUNTS or dataset in DatasetCatalog.list():
        return ClassFrequencies.from_dataset(dataset)
    if "image_count" in read_json(dataset):
        return ClassFrequencies.from_counts_file(dataset)
    return ClassFrequencies.from_annotations(dataset)
