#!/usr/bin/env python
"""Make MiniLVIS, the long-tailed dataset that comes with eql_d2, or a variant of it.

The registered datasets make themselves on first use; this is for doing so ahead, and for variants.
"""

import argparse
import json
import os
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path

from eql_d2.mini_lvis.generator import MiniLVISSpec, ensure

HELP = {
    "num_categories": "number of glyph categories",
    "num_train_images": "number of training images",
    "num_val_images": "number of validation images",
    "max_image_count": "training images of the most frequent category, lowered if they do not fit",
    "tail_exponent": "0: balanced, 1: exponential down to one image, larger: a harder tail",
    "first_glyph": "index of the first glyph; sets without a common glyph serve for pre-training",
    "seed": "of everything random",
    "image_size": "side of the square images in pixels",
    "min_val_images": "val images of each category at least, lowered if they do not fit",
    "rows": "every other category keeps to a height of its own in the image",
}
FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    default_output = Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser() / "mini_lvis"
    parser.add_argument("--output", type=Path, default=default_output, help="folder to make")
    for field in fields(MiniLVISSpec):
        how = {"action": "store_true"} if field.type is bool else {"type": field.type}
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, **how, default=field.default, help=HELP[field.name])
    return parser.parse_args(argv)


def describe(root: Path) -> str:
    """What the dataset at ``root`` holds, in a few lines."""
    lines = [f"MiniLVIS is in {root}"]
    for split in ("train", "val"):
        content = json.loads((root / f"mini_lvis_{split}.json").read_text())
        letter = {c["id"]: c["frequency"] for c in content["categories"]}
        categories = Counter(letter.values())
        boxes = Counter(letter[a["category_id"]] for a in content["annotations"])
        lines.append(f"  {split}: {len(content['images'])} images, {boxes.total()} boxes")
        lines += [f"    {categories[x]:3} {name} categories with {boxes[x]} boxes" for x, name in FREQUENCIES.items()]
    return "\n".join(lines)


def usage(spec: MiniLVISSpec, root: Path) -> str:
    """How to train on the dataset at ``root``."""
    if spec == MiniLVISSpec() and root.name == "mini_lvis":
        return (
            "Detectron2 knows it as mini_lvis_train and mini_lvis_val where the environment has\n"
            f"  DETECTRON2_DATASETS={root.parent}"
        )
    return (
        "To register it as my_set_train and my_set_val:\n"
        "  from eql_d2.mini_lvis.datasets import register_mini_lvis\n"
        f'  register_mini_lvis("my_set", {spec}, Path("{root}"))'
    )


def main(argv=None) -> None:
    args = vars(parse_args(argv))
    output = args.pop("output")
    try:
        spec = MiniLVISSpec(**args)
        root = ensure(spec, output)
    except (ValueError, OSError) as error:
        sys.exit(f"prepare_mini_lvis.py: error: {error}")
    print(describe(root))
    print(usage(spec, root))


if __name__ == "__main__":
    main()
