"""Section `startup` of python -m speed: what happens before the first step, each in a process of its own."""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

# What runs before and what is measured: CPU seconds, MiB by which the peak of the resident set rises, and MiB that are
# still held when only `data` is left.
CASES = {
    "import": {
        "detectron2.modeling": ("", "import detectron2.modeling"),
        "+ eql_d2": ("import detectron2.modeling", "import eql_d2"),
    },
    "1.2 million annotations": {
        "json.load": ("import json", "data = json.load(open(file))"),
        "detectron2's load_lvis_json": (
            "from detectron2.data.datasets.lvis import load_lvis_json",
            "data = load_lvis_json(file, '.')",
        ),
        "eql_d2's ClassFrequencies": (
            "from eql_d2 import ClassFrequencies",
            "data = ClassFrequencies.from_annotations(file)",
        ),
    },
    # As a training loader reads and keeps them.
    "their training dicts": {
        "detectron2": (
            "{cfg}from detectron2.data import get_detection_dataset_dicts as load",
            "data = DatasetFromList(load(cfg.DATASETS.TRAIN), copy=False)",
        ),
        "eql_d2, with masks": (
            "{cfg}from eql_d2.data.loading import load_training_dicts as load; cfg.MODEL.MASK_ON = True",
            "data = DatasetFromList(load(cfg), copy=False)",
        ),
        "eql_d2, boxes only": (
            "{cfg}from eql_d2.data.loading import load_training_dicts as load",
            "data = DatasetFromList(load(cfg), copy=False)",
        ),
    },
}
CFG = """
from eql_d2.engine.setup import default_config
from detectron2.data import DatasetCatalog, DatasetFromList
from detectron2.data.datasets.lvis import load_lvis_json
DatasetCatalog.register("a", lambda: load_lvis_json(file, "."))
cfg = default_config()
cfg.DATASETS.TRAIN = ("a",)
"""
MEASURE = """
import ctypes, gc, sys, time
def resident(which):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(which)) / 1024
file = sys.argv[1]
{before}
held, peak, start = resident("VmRSS:"), resident("VmHWM:"), time.process_time()
{measured}
seconds, peak = time.process_time() - start, resident("VmHWM:") - peak
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
print(seconds, peak, resident("VmRSS:") - held)
"""


def benchmark_startup(repeats: int) -> list[dict]:
    """One row for each entry of CASES; the first of a case is what the others are compared with."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "annotations.json"
        write_annotations(file)
        for case, variants in CASES.items():
            results = {name: [] for name in variants}
            for _ in range(repeats):
                for name, (before, measured) in variants.items():
                    code = MEASURE.format(before=before.format(cfg=CFG), measured=measured)
                    results[name].append(run(code, file))
            medians = {name: [statistics.median(x) for x in zip(*of)] for name, of in results.items()}
            first = next(iter(medians.values()))
            for name, (seconds, peak, held) in medians.items():
                rows.append(
                    {
                        "section": "startup",
                        "case": case,
                        "variant": name,
                        "CPU s": seconds,
                        "of its time": seconds / first[0],
                        "peak MiB": peak,
                        "of its peak": peak / first[1],
                        "held MiB": held,
                    }
                )
    return rows


def run(code: str, file: Path) -> list[float]:
    command = [sys.executable, "-c", code, str(file)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return list(map(float, output.split()[-3:]))


def write_annotations(file: Path) -> None:
    """As many images, categories and objects as LVIS v1's training set has, in its format; a polygon is a box."""
    num_images, num_categories, num_objects = 99_388, 1203, 1_200_000
    rng = np.random.default_rng(0)
    probability = 1 / np.arange(1, num_categories + 1) ** 0.9
    categories = rng.choice(num_categories, num_objects, p=probability / probability.sum()) + 1
    images = rng.integers(0, num_images, num_objects)
    boxes = rng.integers(1, 300, (num_objects, 4))
    parts = {
        "categories": [
            {"id": k + 1, "name": f"category {k}", "frequency": "fcr"[k // 401]} for k in range(num_categories)
        ],
        "images": [
            {
                "id": i,
                "height": 640,
                "width": 640,
                "coco_url": f"http://images.cocodataset.org/train2017/{i:012d}.jpg",
                "neg_category_ids": [1, 2, 3],
                "not_exhaustive_category_ids": [],
            }
            for i in range(num_images)
        ],
        "annotations": [
            {
                "id": n + 1,
                "image_id": image,
                "category_id": category,
                "bbox": [x, y, w, h],
                "area": w * h,
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            }
            for n, (image, category, (x, y, w, h)) in enumerate(
                zip(images.tolist(), categories.tolist(), boxes.tolist())
            )
        ],
    }
    file.write_text(json.dumps(parts))
