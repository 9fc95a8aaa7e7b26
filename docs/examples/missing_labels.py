#!/usr/bin/env python
"""MiniLVIS with labels missing, to see what image labels are worth: python docs/examples/missing_labels.py train.json

In each training image each common or frequent category loses all of its labels with probability 1/2, as if nobody had
looked for it. It is then neither annotated nor listed in neg_category_ids, as most categories of most images of LVIS.
"""

import argparse
import json
import random
from pathlib import Path

from eql_d2.mini_lvis.datasets import SPECS, datasets_root
from eql_d2.mini_lvis.generator import ensure


def without_labels(data: dict, probability: float, seed: int = 0) -> dict:
    """The LVIS-format content without the objects of a random part of the (image, category) pairs that have some."""
    rng = random.Random(seed)
    rare = {c["id"] for c in data["categories"] if c["frequency"] == "r"}
    pairs = sorted({(a["image_id"], a["category_id"]) for a in data["annotations"]})
    dropped = {pair for pair in pairs if pair[1] not in rare and rng.random() < probability}
    kept = [a for a in data["annotations"] if (a["image_id"], a["category_id"]) not in dropped]
    return {**data, "annotations": kept}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="annotation file to write")
    parser.add_argument("--probability", type=float, default=0.5, help="of a pair to lose its labels (default 0.5)")
    arguments = parser.parse_args()
    root = datasets_root() / "mini_lvis"
    ensure(SPECS["mini_lvis"], root)
    data = json.loads((root / "mini_lvis_train.json").read_text())
    left = without_labels(data, arguments.probability)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(left))
    objects = f"{len(left['annotations'])} of {len(data['annotations'])} objects"
    print(f"wrote {arguments.output} with {objects}; the images are in {root}")


if __name__ == "__main__":
    main()
