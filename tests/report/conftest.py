"""Folders of finished runs, as training and evaluation write them, with names that try to break the page."""

import csv
import json

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

HOSTILE = "<script>alert('x')</script>"
NAMES = [HOSTILE, "a, \"b\" & 'c' $x$ $y$", "%{x} <b>bold</b>", "zebra", "cat"]
GROUPS = ["r", "r", "c", "f", "f"]
TRAIN_IMAGES = [2, 9, 40, 400, 500]
DATASET = "eql_d2_test_report_val"


class RunFolders:
    """Makes runs below a folder.

    Args:
        root: the folder.
        images: image folder of the dataset, whose annotation file is `annotations`.
    """

    def __init__(self, root, annotations, images):
        self.root, self.annotations, self.images = root, annotations, images

    def make(self, name, head="LongTailROIHeads", seed=0, ap=(10.0, None, 30.0, 50.0, 60.5), **parts):
        """A run with the given AP by category; `parts` set to False leaves files out."""
        folder = self.root / name
        inference = folder / "inference" / DATASET
        inference.mkdir(parents=True)
        config = {
            "MODEL": {"ROI_HEADS": {"NAME": head, "NUM_CLASSES": len(NAMES)}},
            "DATASETS": {
                "TEST": [DATASET],
                "TRAIN": [DATASET],
                "REGISTER": [[DATASET, str(self.annotations), str(self.images)]],
            },
            "SEED": seed,
            "OUTPUT_DIR": str(folder),
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        metrics = {"AP": 37.6 + seed, "APr": 10.0, "APc": 30.0, "APf": 55.25, "ECE-all": 4.0, "AP75": float("nan")}
        (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in metric_lines(metrics)))
        if parts.get("categories", True):
            write_categories(inference / "categories_bbox.csv", ap)
        if parts.get("analysis", True):
            finite = {key: None if value != value else value for key, value in metrics.items()}
            (inference / "analysis_bbox.json").write_text(json.dumps(analysis(finite)))
        if parts.get("gradients", True):
            stages = [{"positive": [0.0, 1.0, 2.0, 3.0, 4.0 + seed], "negative": [5.0, 10.0, 4.0, 3.0, 5.0]}] * 2
            (folder / "gradient_balance.json").write_text(json.dumps({"iterations": 40, "stages": stages}))
        save_predictions(inference / "instances_predictions.pth")
        return folder


def metric_lines(metrics):
    for iteration in (19, 39):
        balance = {
            f"balance/{name}_{group}": value / (1 + iteration)
            for name, value in (("gradient_ratio", 2.0), ("cost", 3.0), ("score", 0.5), ("weight_norm", 1.0))
            for group in ("rare", "common", "frequent")
        }
        yield {"iteration": iteration, "loss_cls": 2.0 - iteration / 40, **balance}
    yield {"iteration": 40, **{f"bbox/{key}": value for key, value in metrics.items()}}


def write_categories(path, ap):
    columns = ["index", "category_id", "name", "group", "tail", "train_images", "train_instances"]
    columns += ["objects", "detections", "AP", "AP50", "AR", "AP-fixed", "AP-boundary"]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for i, (name, group, images, value) in enumerate(zip(NAMES, GROUPS, TRAIN_IMAGES, ap)):
            ap_text = "" if value is None else value
            writer.writerow([i, i + 1, name, group, 1, images, images, 3, 9, ap_text, ap_text, ap_text, "", ""])


def analysis(metrics):
    bins = [
        {"low": 0.0, "high": 0.05, "detections": 90, "precision": 0.1, "score": 0.02},
        {"low": 0.05, "high": 0.1, "detections": 0, "precision": None, "score": None},
        {"low": 0.95, "high": 1.0, "detections": 10, "precision": 0.8, "score": 0.97},
    ]
    calibration = {"detections": 100, "precision": 0.17, "score": 0.1, "ece": 0.04, "bias": 0.0, "bins": bins}
    outcome = {
        "objects": 6,
        "right": 0.5,
        "wrong": 0.25,
        "missed": 0.25,
        "wrong_by_group": {"r": 0.0, "c": 0.05, "f": 0.2},
        "unverified": 0.0,
    }
    return {
        "format": 1,
        "metrics": metrics,
        "frequency_bins": [
            {"min_images": 1, "max_images": 4, "categories": 1, "evaluated": 1, "AP": 10.0, "AP50": 10.0, "AR": 10.0},
            {"min_images": 5, "max_images": 9, "categories": 1, "evaluated": 0, "AP": None, "AP50": None, "AR": None},
        ],
        "calibration": {"iou": 0.5, "min_score": 1e-4, "groups": {"all": calibration, "r": calibration}},
        "confusion": {"iou": 0.5, "groups": {"all": outcome, "r": outcome}, "pairs": []},
    }


def save_predictions(path):
    image = {
        "image_id": 7,
        "category_id": torch.tensor([3, 0, 1]),
        "bbox": torch.tensor([[4.0, 4.0, 30.0, 30.0], [5.0, 5.0, 30.0, 30.0], [40.0, 30.0, 20.0, 20.0]]),
        "score": torch.tensor([0.9, 0.4, 0.05]),
        "mask_size": None,
        "mask_counts": None,
    }
    torch.save([image], path)


@pytest.fixture
def runs(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(images / "7.png")
    boxes = [[4, 4, 30, 30], [40, 30, 20, 20]]
    annotations = {
        "images": [{"id": 7, "file_name": "7.png", "height": 64, "width": 80}],
        "annotations": [
            {"id": i + 1, "image_id": 7, "category_id": i + 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            for i, box in enumerate(boxes)
        ],
        "categories": [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)],
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(annotations))
    yield RunFolders(tmp_path / "runs", path, images)
    if DATASET in DatasetCatalog.list():
        DatasetCatalog.remove(DATASET)
        MetadataCatalog.remove(DATASET)
