#!/usr/bin/env python
"""Measure an evaluation step by step, from 1,000 images to those of LVIS val: 300 detections each of 1,203 categories.

    python -m speed.lvis_size
    python -m speed.lvis_size --images 1000 5000 19809 --masks --output lvis_size.json --plot lvis_size.png

CPU seconds of each step of LVISEvaluator, and the process's peak memory by the end of it. A process for each size, on
one core. *gather* is what one of 8 processes sends: its pickled message. The annotations have polygons, 12 objects an
image; masks of detections are the boxes' polygons as RLEs.
"""

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from detectron2.data import MetadataCatalog
from pycocotools.mask import frPyObjects
from tabulate import tabulate

from eql_d2.data.annotations import read_truth
from eql_d2.evaluation.lvis_metrics import GroundTruth, match_lvis
from eql_d2.evaluation.predictions import ImagePredictions, as_detections, save, write_json
from eql_d2.evaluation.tail_analysis import TailAnalysis
from speed.__main__ import corners, random_boxes, resident_peak, synthetic_detections

K, OBJECTS, DETECTIONS, SIZE, PROCESSES = 1203, 12, 300, (480, 640), 8
DATASET, MAKING = "speed_lvis_size", "(making the set)"


def make_image(number: int, with_masks: bool, draw, rng) -> tuple[list[dict], dict, ImagePredictions]:
    """Annotations of an image, its dict, and the detections."""
    boxes, categories = random_boxes(OBJECTS, rng), draw(OBJECTS)
    objects = [
        {
            "id": number * OBJECTS + i + 1,
            "image_id": number,
            "category_id": category + 1,
            "bbox": box,
            "area": box[2] * box[3],
            "segmentation": [corners(box)],
        }
        for i, (box, category) in enumerate(zip(boxes.tolist(), categories.tolist()))
    ]
    image = {
        "id": number,
        "height": SIZE[0],
        "width": SIZE[1],
        "neg_category_ids": sorted(set(range(1, 13)) - set((categories + 1).tolist())),
        "not_exhaustive_category_ids": [],
    }
    found, classes, scores = synthetic_detections(DETECTIONS, boxes, categories, draw, rng)
    order = np.argsort(-scores)
    rles = frPyObjects([corners(box) for box in found[order].tolist()], *SIZE) if with_masks else None
    predictions = ImagePredictions(
        number,
        classes[order],
        found[order].astype(np.float32),
        scores[order].astype(np.float32),
        list(SIZE) if with_masks else None,
        None if rles is None else [rle["counts"].decode("ascii") for rle in rles],
    )
    return objects, image, predictions


def make_set(num_images: int, with_masks: bool, path: Path) -> list[ImagePredictions]:
    """Write the annotations to ``path``; Zipf's law says how frequent a category is."""
    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, K + 1)
    shares /= shares.sum()

    def draw(n):
        return rng.choice(K, n, p=shares)

    made = [make_image(number, with_masks, draw, rng) for number in range(1, num_images + 1)]
    letters = np.repeat(["f", "c", "r"], [405, 461, 337]).tolist()
    truth = {
        "images": [image for _, image, _ in made],
        "annotations": [each for objects, _, _ in made for each in objects],
        "categories": [{"id": k + 1, "name": f"c{k}", "frequency": letters[k]} for k in range(K)],
    }
    path.write_text(json.dumps(truth))
    return [predictions for _, _, predictions in made]


class Steps:
    """Rows of the table; use as ``steps.run("name", function, ...)``."""

    def __init__(self, num_images: int):
        self.num_images, self.rows = num_images, []

    def run(self, name: str, function, *args):
        start = time.process_time()
        result = function(*args)
        seconds = time.process_time() - start
        self.rows.append(
            {"images": self.num_images, "step": name, "CPU s": seconds, "peak MiB": resident_peak() / 1024}
        )
        return result


def measure(num_images: int, with_masks: bool) -> list[dict]:
    """What LVISEvaluator.evaluate does, in its order."""
    steps, task = Steps(num_images), "segm" if with_masks else "bbox"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        predictions = make_set(num_images, with_masks, folder / "truth.json")
        steps.run(MAKING, lambda: None)
        part = predictions[: -(-num_images // PROCESSES)]
        message = steps.run("gather", lambda: pickle.loads(pickle.dumps(part, protocol=-1)) and pickle.dumps(part, -1))
        steps.rows[-1]["MiB"] = len(message) / 2**20
        del message
        steps.run("predictions", save, predictions, str(folder / "predictions.pth"))
        steps.rows[-1]["MiB"] = (folder / "predictions.pth").stat().st_size / 2**20
        predictions = [p.with_dataset_ids(None) for p in predictions]
        steps.run("results", write_json, predictions, str(folder / "results.json"))
        steps.rows[-1]["MiB"] = (folder / "results.json").stat().st_size / 2**20
        truth = steps.run("annotations", lambda: GroundTruth.load(read_truth(folder / "truth.json")))
        detections = as_detections(predictions)
        matching = steps.run("matching", match_lvis, truth, detections, task)
        standard = steps.run("metrics", lambda: matching.curves.metrics())
        MetadataCatalog.get(DATASET).thing_classes = [f"c{k}" for k in range(K)]
        analysis = TailAnalysis(DATASET, str(folder))
        steps.run("analysis", analysis.run, matching, standard)
    steps.rows.append(
        {
            "images": num_images,
            "step": "all",
            "CPU s": sum(row["CPU s"] for row in steps.rows),
            "peak MiB": resident_peak() / 1024,
        }
    )
    return steps.rows


def plot(rows: list[dict], path: str) -> None:
    """Seconds of each step over images, on logarithmic axes, where linear growth is a straight line of slope 1."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
    for step in dict.fromkeys(row["step"] for row in rows if row["step"] != MAKING):
        mine = [(row["images"], row["CPU s"]) for row in rows if row["step"] == step]
        axes.loglog(*zip(*mine), marker="o", label=step)
    axes.set(xlabel="images", ylabel="CPU seconds", title=f"Evaluation, {DETECTIONS} detections an image, one core")
    axes.grid(True, which="both", alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(path, dpi=110)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--images", nargs="+", type=int, default=[1000, 5000, 19809], help="sizes (default: 1000 5000 19809)"
    )
    parser.add_argument("--masks", action="store_true", help="detections have masks, and these are evaluated")
    parser.add_argument("--output", help="JSON file to write the rows to")
    parser.add_argument("--plot", help="file to draw the seconds to")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # measure in this process, print JSON
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    if args.one:
        print(json.dumps(measure(args.images[0], args.masks)))
        return
    rows = []
    for images in args.images:
        command = [sys.executable, "-m", "speed.lvis_size", "--one", "--images", str(images)]
        command += ["--masks"] if args.masks else []
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows_of_size = json.loads(output.splitlines()[-1])
        print(tabulate(rows_of_size, headers="keys", floatfmt=".4g"), end="\n\n", flush=True)
        rows += rows_of_size
    if args.plot:
        plot(rows, args.plot)
    if args.output:
        Path(args.output).write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main(parse_args())
