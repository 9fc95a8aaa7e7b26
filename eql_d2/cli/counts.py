"""Count images and instances of each category of a COCO- or LVIS-format annotation file, and where they lie.

    eql-d2 counts datasets/mine/train.json datasets/mine/train_counts.json

Then train with MODEL.ROI_BOX_HEAD.CLS_LOSS.COUNTS_FILE datasets/mine/train_counts.json.
"""

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("annotations", help="annotation file, JSON in COCO or LVIS format")
    parser.add_argument("output", help="JSON file to write the counts to")


def run(args: argparse.Namespace) -> None:
    from eql_d2.data.annotations import read_annotations
    from eql_d2.data.frequencies import ClassFrequencies

    for note in read_annotations(args.annotations).notes:
        print(f"warning: {note}", file=sys.stderr)
    frequencies = ClassFrequencies.from_annotations(args.annotations)
    frequencies.save(args.output)
    groups = frequencies.groups
    print(
        f"{len(frequencies)} categories in {frequencies.num_images} annotated images: {groups.count('r')} rare, "
        f"{groups.count('c')} common, {groups.count('f')} frequent"
    )
    print(f"wrote {args.output}; use it with MODEL.ROI_BOX_HEAD.CLS_LOSS.COUNTS_FILE {args.output}")
