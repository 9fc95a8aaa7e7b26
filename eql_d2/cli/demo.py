"""Detect objects in your own images, and draw them.

    eql-d2 demo --config-file MiniLVIS/eql_faster_rcnn --input photos 'more/*.jpg' a.png \\
        --output drawn --opts MODEL.WEIGHTS output/mini_lvis_eql/model_final.pth

At each place the best category is drawn. An image that cannot be read is named and skipped.
"""

import argparse
import logging
import os
import sys

from eql_d2.data.whole_files import make_folder, naming
from eql_d2.errors import InputError

# Scores of a long-tailed detector are low, those of rare categories most of all: at the 0.5 of Detectron2's demo an
# LVIS model may show nothing (detectron2#4942). So low a threshold needs ``choose``: one category a place.
CONFIDENCE_THRESHOLD = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of the model")
    parser.add_argument("--input", required=True, nargs="+", help="image files, folders of images, or glob patterns")
    parser.add_argument("--output", required=True, help="folder for the pictures")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        help=f"lowest score that is drawn, in [0, 1], default {CONFIDENCE_THRESHOLD}: rare objects score low; with "
        "MODEL.ROI_BOX_HEAD.THRESHOLDS_FILE each category has its own, and the default is 0",
    )
    parser.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        help="KEY VALUE overrides of the config, MODEL.WEIGHTS first of all",
    )


def run(args: argparse.Namespace) -> None:
    from PIL import Image
    from tqdm import tqdm

    from eql_d2.drawing.names import drawable
    from eql_d2.engine.demo import Predictor, category_names, choose, draw, image_files, output_names, read_rgb
    from eql_d2.engine.settings import detecting_head
    from eql_d2.engine.setup import load_config, use_available_device

    logging.getLogger("detectron2").setLevel(logging.ERROR)
    cfg = load_config(args.config_file, args.opts)
    use_available_device(cfg)
    lowest = args.confidence_threshold
    if lowest is None:
        lowest = 0.0 if cfg.MODEL.ROI_BOX_HEAD.THRESHOLDS_FILE else CONFIDENCE_THRESHOLD
    files = image_files(args.input)
    predictor = Predictor(cfg)
    names = category_names(cfg)
    make_folder(args.output)
    if names is None:
        print("no dataset of the config has names for the categories: they are numbered")
        names = [str(i) for i in range(cfg.MODEL[detecting_head(cfg)].NUM_CLASSES)]
    num_read = num_drawn = 0
    names = drawable(names)
    for file, name in zip(tqdm(files, unit="image"), output_names(files)):
        try:
            image = read_rgb(file)
        except OSError as error:
            tqdm.write(f"skipped {file}: {error}", file=sys.stderr)
            continue
        found = predictor(image[:, :, ::-1])["instances"].to("cpu")
        drawn = choose(found, lowest)
        path = os.path.join(args.output, name)
        with naming(path):
            Image.fromarray(draw(image, drawn, names)).save(path)
        tqdm.write(f"{file}: {describe(found, len(drawn), names)}")
        num_read += 1
        num_drawn += len(drawn)
    if num_read == 0:
        raise InputError(f"none of {len(files)} images could be read")
    print(f"drew {num_drawn} detections of score >= {lowest:g} in {num_read} of {len(files)} images")
    print(f"pictures: {args.output}")


def describe(found, num_drawn: int, names) -> str:
    """`4 of 31 detections drawn, ...`, with what would be drawn at a lower threshold where nothing is."""
    counted = f"{num_drawn} of {len(found)} detections drawn"
    if len(found) == 0:
        return f"{counted}: the model found nothing"
    best = int(found.scores.argmax())
    score, name = float(found.scores[best]), names[int(found.pred_classes[best])]
    lower = "" if num_drawn else f": --confidence-threshold {0.99 * score:.2g} draws it"
    return f"{counted}, the best score is {score:.2g} ({name}){lower}"
