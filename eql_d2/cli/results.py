"""Draw the predictions of a finished run beside ground truth: the images with the rarest objects first.

    eql-d2 results output/mini_lvis_eql --output drawn --num-images 20

Reads what the run's evaluation saved; no model is run. At each place the best category is drawn, as many places as the
image has objects, so that no score threshold decides.
"""

import argparse
import logging
import os
import sys
from pathlib import Path

from eql_d2.data.whole_files import make_folder, naming
from eql_d2.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="output folder of training")
    parser.add_argument("--output", required=True, help="folder for the pictures")
    parser.add_argument("--num-images", type=int, default=20, help="default 20")
    parser.add_argument("--dataset", help="test set, default: the first one of DATASETS.TEST")


def run(args: argparse.Namespace) -> None:
    from detectron2.config import CfgNode
    from PIL import Image
    from tqdm import tqdm

    import eql_d2.registration  # noqa: F401  (runs on MiniLVIS are drawn, too)
    from eql_d2.data.frequencies import ClassFrequencies
    from eql_d2.data.registration import register_datasets
    from eql_d2.drawing.panels import Panels
    from eql_d2.drawing.picture import rarest_images
    from eql_d2.evaluation.run_folder import read_run_config
    from eql_d2.evaluation.saved_predictions import load_dataset, read_detections

    logging.getLogger("detectron2").setLevel(logging.WARNING)
    cfg = CfgNode(read_run_config(args.run))
    cfg.OUTPUT_DIR = ""  # counts are not kept there
    register_datasets(cfg.DATASETS.REGISTER)
    if not (args.dataset or cfg.DATASETS.TEST):
        raise InputError(f"{args.run} was evaluated on no dataset (DATASETS.TEST is empty)")
    dataset = args.dataset or cfg.DATASETS.TEST[0]
    dicts, names = load_dataset(dataset)
    frequencies = ClassFrequencies.from_config(cfg)
    images = rarest_images(dicts, frequencies.image_count.numpy(), args.num_images)
    detections = read_detections(Path(args.run) / "inference" / dataset, images)
    make_folder(args.output)
    panels = Panels(names, frequencies.groups)
    num_drawn = 0
    for place, (image_id, image) in enumerate(tqdm(images.items(), unit="image")):
        if image_id not in detections:
            tqdm.write(f"skipped image {image_id}: the run has no predictions of it", file=sys.stderr)
            continue
        try:
            picture = beside(image, detections[image_id], panels)
        except OSError as error:
            tqdm.write(f"skipped image {image_id}: {error}", file=sys.stderr)
            continue
        path = os.path.join(args.output, f"{place:03d}_image_{image_id}.png")
        with naming(path):
            Image.fromarray(picture).save(path)
        num_drawn += 1
    if num_drawn == 0:
        raise InputError(f"none of {len(images)} images of {dataset} could be drawn")
    print(f"drew {num_drawn} images of {dataset}, the rarest objects first: ground truth left, predictions right")
    print(f"pictures: {args.output}")


def beside(image: dict, found, panels):
    """Ground truth and predictions of an image, side by side."""
    import numpy as np

    from eql_d2.drawing.panels import best_places

    best = best_places(found.boxes, found.scores, len(image["annotations"]))
    predicted = panels.predictions(image, found.boxes[best], found.scores[best], found.classes[best])
    return np.concatenate([panels.truth(image), predicted], axis=1)
