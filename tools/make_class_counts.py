#!/usr/bin/env python
"""Count images and instances of each category of a COCO- or LVIS-format annotation file.

    python tools/make_class_counts.py datasets/mine/train.json datasets/mine/train_counts.json

Then train with MODEL.ROI_BOX_HEAD.CLS_LOSS.COUNTS_FILE datasets/mine/train_counts.json.
"""

import argparse
import sys

from eql_d2 import ClassFrequencies


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("annotations", help="annotation file, JSON in COCO or LVIS format")
    parser.add_argument("output", help="JSON file to write the counts to")
    args = parser.parse_args()
    try:
        frequencies = ClassFrequencies.from_annotations(args.annotations)
        frequencies.save(args.output)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    groups = frequencies.groups
    print(
        f"{len(frequencies)} categories in {frequencies.num_images} annotated images: {groups.count('r')} rare, "
        f"{groups.count('c')} common, {groups.count('f')} frequent"
    )
    print(f"wrote {args.output}; use it with MODEL.ROI_BOX_HEAD.CLS_LOSS.COUNTS_FILE {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
