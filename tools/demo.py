#!/usr/bin/env python
"""Detect objects in your own images, and draw them.

    python tools/demo.py --config-file configs/MiniLVIS/eql_faster_rcnn.yaml --input photos 'more/*.jpg' a.png \\
        --output drawn --opts MODEL.WEIGHTS output/mini_lvis_eql/model_final.pth

At each place the best category is drawn. An image that cannot be read is named and skipped.
"""

import argparse
import logging
import os
import sys

from PIL import Image
from tqdm import tqdm

from eql_d2.engine import load_config, one_line_errors, use_available_device
from eql_d2.engine.demo import (
    CONFIDENCE_THRESHOLD,
    Predictor,
    category_names,
    choose,
    draw,
    image_files,
    output_names,
    read_rgb,
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="config of the model")
    parser.add_argument("--input", required=True, nargs="+", help="image files, folders of images, or glob patterns")
    parser.add_argument("--output", required=True, help="folder for the pictures")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=CONFIDENCE_THRESHOLD,
        help=f"lowest score that is drawn, in [0, 1], default {CONFIDENCE_THRESHOLD}: rare objects score low",
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        help="KEY VALUE overrides of the config, MODEL.WEIGHTS first of all",
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    with one_line_errors():
        cfg = load_config(args.config_file, args.opts)
        use_available_device(cfg)
        files = image_files(args.input)
        predictor = Predictor(cfg)
        names = category_names(cfg)
        os.makedirs(args.output, exist_ok=True)
    if names is None:
        print("no dataset of the config has names for the categories: they are numbered")
        names = [str(i) for i in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)]
    num_read = num_drawn = 0
    for file, name in zip(tqdm(files, unit="image"), output_names(files)):
        try:
            image = read_rgb(file)
        except OSError as error:
            tqdm.write(f"skipped {file}: {error}", file=sys.stderr)
            continue
        chosen = choose(predictor(image[:, :, ::-1])["instances"], args.confidence_threshold)
        Image.fromarray(draw(image, chosen.instances, names)).save(os.path.join(args.output, name))
        tqdm.write(f"{file}: {describe(chosen, names)}")
        num_read += 1
        num_drawn += len(chosen.instances)
    if num_read == 0:
        print(f"error: none of {len(files)} images could be read", file=sys.stderr)
        return 1
    print(f"drew {num_drawn} detections of score >= {args.confidence_threshold:g} in {num_read} of {len(files)} images")
    print(f"pictures: {args.output}")
    return 0


def describe(chosen, names) -> str:
    """`4 of 31 detections drawn, ...`, with what would be drawn at a lower threshold where nothing is."""
    counted = f"{len(chosen.instances)} of {chosen.num_detections} detections drawn"
    if chosen.num_detections == 0:
        return f"{counted}: the model found nothing"
    best = f"the best score is {chosen.best_score:.2g} ({names[chosen.best_class]})"
    lower = "" if len(chosen.instances) else f": --confidence-threshold {0.99 * chosen.best_score:.2g} draws it"
    return f"{counted}, {best}{lower}"


if __name__ == "__main__":
    sys.exit(main())
