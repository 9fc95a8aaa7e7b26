#!/usr/bin/env python
"""Measure an evaluation step by step, from 1,000 images to those of LVIS val: 300 detections each of 1,203 categories.

    python -m speed.lvis_size
    python -m speed.lvis_size --images 1000 5000 19809 --masks --plot lvis_size.png

CPU seconds of each step of LVISEvaluator, and the process's peak memory by the end of it. A process for each size, on
one core. *gather* is what one of 8 processes sends: its pickled message. The annotations have polygons, 12 objects an
image; masks of detections are boxes as RLEs.
"""

import argparse
import json
import pickle
import tempfile
import time
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from matplotlib.figure import Figure
from tabulate import tabulate

from eql_d2.data.annotations import read_truth
from eql_d2.evaluation.lvis_metrics import GroundTruth, match_lvis
from eql_d2.evaluation.predictions import ImagePredictions, as_detections, save, write_json
from eql_d2.evaluation.tail_analysis import TailAnalysis
from speed.measuring import in_own_process, resident_peak
from speed.synthetic import CATEGORIES, HEIGHT, WIDTH, rles_of, synthetic_images

DETECTIONS, PROCESSES = 300, 8
DATASET, MAKING = "speed_lvis_size", "(making the set)"


def make_set(num_images: int, with_masks: bool, path: Path) -> list[ImagePredictions]:
    """Write the annotations to ``path``."""
    truth: dict = {"images": [], "annotations": [], "categories": CATEGORIES}
    predictions = []
    for image, annotations, (boxes, category_ids, scores) in synthetic_images(num_images, DETECTIONS):
        truth["images"].append(image)
        truth["annotations"] += annotations
        order = np.argsort(-scores)
        rles = rles_of(boxes[order]) if with_masks else None
        predictions.append(
            ImagePredictions(
                image["id"],
                category_ids[order] - 1,
                boxes[order].astype(np.float32),
                scores[order].astype(np.float32),
                [HEIGHT, WIDTH] if with_masks else None,
                None if rles is None else [rle["counts"].decode("ascii") for rle in rles],
            )
        )
    path.write_text(json.dumps(truth))
    return predictions


class Steps:
    """Rows of the table; use as ``steps.run("name", function, ...)``."""

    def __init__(self, num_images: int):
        self.num_images, self.rows = num_images, []

    def run(self, name: str, function, *args):
        start = time.process_time()
        result = function(*args)
        seconds = time.process_time() - start
        self.rows.append({"images": self.num_images, "step": name, "CPU s": seconds, "peak MiB": resident_peak()})
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
        MetadataCatalog.get(DATASET).thing_classes = [category["name"] for category in CATEGORIES]
        analysis = TailAnalysis(DATASET, str(folder))
        steps.run("analysis", analysis.run, matching, standard)
    total = sum(row["CPU s"] for row in steps.rows)
    return [*steps.rows, {"images": num_images, "step": "all", "CPU s": total, "peak MiB": resident_peak()}]


def plot(rows: list[dict], path: str) -> None:
    """Seconds of each step over images, on logarithmic axes, where linear growth is a straight line of slope 1."""
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
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
    parser.add_argument("--plot", help="file to draw the seconds to")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    rows = []
    for images in args.images:
        rows_of_size = in_own_process(measure, images, args.masks)
        print(tabulate(rows_of_size, headers="keys", floatfmt=".4g"), end="\n\n", flush=True)
        rows += rows_of_size
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main(parse_args())
