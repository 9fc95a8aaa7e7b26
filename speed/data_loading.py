#!/usr/bin/env python
"""Measure the loading of training images with masks, part by part: Detectron2's loader beside ours.

    DETECTRON2_DATASETS=... python -m speed.data_loading
    DETECTRON2_DATASETS=... python -m speed.data_loading --images 200

Images of lvis_v1_train at the sizes of a config (LVIS's: 640 to 800 px, at most 1,333), read in this process, so that
a second of one core is what a worker takes. CPU milliseconds an image, batches of the two loaders in turn.
"""

import argparse
import time
from collections.abc import Iterator

import torch
from detectron2.data import build_detection_train_loader, detection_utils
from detectron2.data.samplers import TrainingSampler
from detectron2.data.transforms import ResizeTransform
from detectron2.structures import PolygonMasks
from tabulate import tabulate

from eql_d2.data.train_loader import TrainLoader
from eql_d2.engine.setup import load_config
from speed.mask_rcnn import SIDES, Parts

CONFIG = "configs/LVISv1/eql_mask_rcnn_R_50_FPN_1x.yaml"
MASK_SIZE = 28  # of the mask head


def timed_parts(parts: Parts) -> None:
    parts.time(detection_utils, "read_image", "read and decode")
    parts.time(ResizeTransform, "apply_image", "resize")
    parts.time(detection_utils, "transform_instance_annotations", "transform boxes and polygons")
    parts.time(detection_utils, "annotations_to_instances", "to instances")
    parts.time(detection_utils, "filter_empty_instances", "leave out empty ones")


def loaders(cfg) -> dict[str, Iterator[list[dict]]]:
    """Endless batches of the same images; each with its own draws of sizes."""
    arguments = build_detection_train_loader.from_config(cfg, sampler=None)
    arguments.update(num_workers=0, aspect_ratio_grouping=False)
    stock = build_detection_train_loader(**{**arguments, "sampler": TrainingSampler(len(arguments["dataset"]), seed=1)})
    del arguments["sampler"]
    return {SIDES[0]: iter(stock), SIDES[1]: iter(TrainLoader(**arguments, seed=1))}


def measure(cfg, images: int) -> dict[str, dict[str, float]]:
    """Side -> part -> CPU milliseconds an image; "masks for the loss" is the same code on both sides."""
    parts, each = Parts(), loaders(cfg)
    timed_parts(parts)
    for loader in each.values():
        next(loader)
    seconds: dict[str, dict[str, float]] = {side: {} for side in SIDES}
    for _ in range(images // cfg.SOLVER.IMS_PER_BATCH):
        for side, loader in each.items():
            parts.seconds.clear()
            start = time.process_time()
            batch = next(loader)
            parts.seconds["the rest of the loader"] = time.process_time() - start - sum(parts.seconds.values())
            parts.timed("masks for the loss", crop)(batch)
            for part, value in parts.seconds.items():
                seconds[side][part] = seconds[side].get(part, 0.0) + value
    count = images // cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.IMS_PER_BATCH
    return {side: {part: 1000 * value / count for part, value in of.items()} for side, of in seconds.items()}


def crop(batch: list[dict]) -> None:
    """What the mask head's loss makes of the polygons, once for each object; the model does it for each proposal."""
    for image in batch:
        instances = image["instances"]
        if isinstance(instances.gt_masks, PolygonMasks):
            instances.gt_masks.crop_and_resize(instances.gt_boxes.tensor, MASK_SIZE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=CONFIG, help="default: %(default)s")
    parser.add_argument("--images", type=int, default=160, help="of each side (default: 160)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    overrides = ["DATASETS.TRAIN", ("lvis_v1_train",), "SOLVER.IMS_PER_BATCH", 4, "MODEL.DEVICE", "cpu"]
    figures = measure(load_config(args.config, overrides), args.images)
    stock, ours = (figures[side] for side in SIDES)
    rows = [[part, value, ours[part], ours[part] / value] for part, value in stock.items()]
    total = [sum(of.values()) for of in (stock, ours)]
    rows.append(["all", *total, total[1] / total[0]])
    print(tabulate(rows, headers=["part, CPU ms an image", *SIDES, "of its time"], floatfmt=".3g", tablefmt="pipe"))


if __name__ == "__main__":
    main()
