"""Write annotation files anew under one vocabulary, to train on several datasets at once, such as LVIS and COCO.

    eql-d2 union together lvis_v1_train.json instances_train2017.json --leave-out lvis_v1_val.json \\
        --same tv=television_set "potted plant=flowerpot"

Then name them in DATASETS.REGISTER and DATASETS.TRAIN, with MODEL.ROI_BOX_HEAD.CLS_LOSS.IMAGE_LABELS True: what a
dataset does not annotate is no negative of its images. docs/sampling.md has the whole recipe.
"""

import argparse
import json
from pathlib import Path

from eql_d2.data.whole_files import make_folder, written_whole
from eql_d2.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, help="folder for the new files, which keep their names")
    parser.add_argument(
        "annotations", nargs="+", help="annotation files in COCO or LVIS format; the first keeps its ids"
    )
    parser.add_argument("--same", nargs="+", default=[], metavar="NAME=OTHER", help="categories that are one")
    parser.add_argument("--leave-out", nargs="+", default=[], metavar="FILE", help="files whose images are not taken")


def run(args: argparse.Namespace) -> None:
    from eql_d2.data.union import union

    outputs = [args.output / Path(path).name for path in args.annotations]
    if len(set(outputs)) < len(outputs):
        raise InputError(f"two of the annotation files have one name: {[path.name for path in outputs]}; rename one")
    pairs = [tuple(text.split("=")) for text in args.same]
    if any(len(pair) != 2 for pair in pairs):
        raise InputError(f"--same takes NAME=OTHER, got {args.same}")
    parts = union(args.annotations, pairs, args.leave_out)
    make_folder(args.output)
    for path, part in zip(outputs, parts, strict=True):
        with written_whole(path, "w") as file:
            json.dump(part, file)
        print(f"wrote {path}: {len(part['images'])} images, {len(part['annotations'])} objects")
    categories = parts[0]["categories"]
    letters = [category["frequency"] for category in categories]
    print(
        f"{len(categories)} categories (MODEL.ROI_HEADS.NUM_CLASSES): {letters.count('r')} rare, {letters.count('c')} "
        f"common, {letters.count('f')} frequent"
    )
