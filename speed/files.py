"""Section `files` of python -m speed: reading annotation files of LVIS's size.

Of the training set: Detectron2's loader of it, or this package's checks of it and its loader, with repeat factor
sampling, up to the first batch. Of the test set: checks, a loader of it, and an evaluation in which nothing was
detected. A process each. `--before` gives a checkout of another version of this package, to be measured too.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import orjson
from PIL import Image

# Images and objects of LVIS v1.
SIZES = {"train": (99_388, 1_270_141), "val": (19_809, 244_707)}
NUM_CATEGORIES, SIDE, CORNERS = 1203, 64, 30
MOST_LINKS = 30_000  # to one file; file systems have a limit

BEFORE = """
import ctypes, logging, sys, time
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.data.datasets.lvis import get_lvis_instances_meta, register_lvis_instances
from detectron2.evaluation import LVISEvaluator
from detectron2.structures import Boxes, Instances
from eql_d2.engine import Trainer, check_run
from eql_d2.config import default_config
import eql_d2.data.train_loader, lvis, numpy, pycocotools.coco
torch.set_num_threads(1)
logging.disable()
file, images = sys.argv[1:]
opened = []
sys.addaudithook(lambda event, args: event == "open" and args[0] == file and opened.append(file))
name = "lvis_v1_of_speed"
register_lvis_instances(name, get_lvis_instances_meta("lvis_v1"), file, images + "/")
cfg = default_config()
cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ((name,), ()) if {train} else ((), (name,))
cfg.MODEL.MASK_ON, cfg.MODEL.DEVICE, cfg.MODEL.ROI_HEADS.NUM_CLASSES = True, "cpu", 1203
cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD = "RepeatFactorTrainingSampler", 0.001
cfg.DATALOADER.NUM_WORKERS, cfg.INPUT.MIN_SIZE_TRAIN = 0, (64,)
cfg.OUTPUT_DIR = images + "/output"
nothing = Instances((64, 64), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
nothing.pred_classes, nothing.pred_masks = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 64, 64, dtype=torch.bool)
def evaluated(evaluator):
    evaluator.reset()
    evaluator.process([dict(image_id=0)], [dict(instances=nothing)])
    evaluator.evaluate()
def resident(which):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(which)) / 1024
held, start = resident("VmRSS:"), time.process_time()
"""
AFTER = """
print(len(opened), time.process_time() - start, resident("VmHWM:") - held, resident("VmRSS:") - held)
"""
OURS = {
    "train": "check_run(cfg, train=True)\nloader = Trainer.build_train_loader(cfg)\nnext(iter(loader))",
    "val": """
check_run(cfg, train=False)
loader = Trainer.build_test_loader(cfg, name)
evaluated(evaluator := Trainer.build_evaluator(cfg, name))
""",
}
DETECTRON2 = {
    "train": "loader = build_detection_train_loader(cfg)\nnext(iter(loader))",
    "val": "loader = build_detection_test_loader(cfg, name)\nevaluated(evaluator := LVISEvaluator(name))",
}


def benchmark_files(repeats: int, before: str | None = None) -> list[dict]:
    """One row for each file and reader; of each file the first is what the others are compared with.

    Args:
        before: the folder of a checkout of another version of this package.
    """
    variants = {"detectron2": (DETECTRON2, "."), "eql_d2": (OURS, ".")}
    if before is not None:
        variants["eql_d2, before"] = (OURS, before)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split, (num_images, num_objects) in SIZES.items():
            file = folder / f"{split}.json"
            write_annotations(file, num_images, num_objects)
            link_images(folder / "train2017", num_images)
            first = None
            for variant, (code, tree) in variants.items():
                runs = [measure(split, code[split], tree, file, folder) for _ in range(repeats)]
                parsed, seconds, peak, held = (statistics.median(values) for values in zip(*runs))
                first = first or (seconds, peak)
                rows.append(
                    {
                        "section": "files",
                        "case": f"LVIS {split}'s size, {file.stat().st_size / 2**20:.0f} MiB",
                        "variant": variant,
                        "parsed": int(parsed),
                        "CPU s": seconds,
                        "of its time": seconds / first[0],
                        "peak MiB": peak,
                        "of its peak": peak / first[1],
                        "held MiB": held,
                    }
                )
            file.unlink()
    return rows


def measure(split: str, code: str, tree: str, file: Path, images: Path) -> list[float]:
    program = BEFORE.format(train=split == "train") + code + AFTER
    command = [sys.executable, "-W", "ignore", "-c", program, str(file), str(images)]
    environment = {**os.environ, "PYTHONPATH": os.path.abspath(tree)}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=tree, env=environment).stdout
    return list(map(float, output.split()[-4:]))


def link_images(folder: Path, num_images: int) -> None:
    """Files for all images, which are looked for before a run; few of them are read."""
    folder.mkdir(exist_ok=True)
    for i in range(num_images):
        path = folder / f"{i:012d}.jpg"
        if i % MOST_LINKS == 0:
            Image.new("RGB", (SIDE, SIDE)).save(path)
            source = path
        elif not path.exists():
            os.link(source, path)


def write_annotations(file: Path, num_images: int, num_objects: int) -> None:
    """In LVIS v1's format, with its categories; polygons have as many corners as LVIS's have on average, or so."""
    from detectron2.data.datasets.lvis import get_lvis_instances_meta

    rng = np.random.default_rng(0)
    names = get_lvis_instances_meta("lvis_v1")["thing_classes"]
    share = 1 / np.arange(1, NUM_CATEGORIES + 1) ** 0.9
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1).ravel()
    categories = (rng.choice(NUM_CATEGORIES, num_objects, p=share / share.sum()) + 1).tolist()
    images = rng.integers(0, num_images, num_objects).tolist()
    radius = rng.integers(2, SIDE // 4, num_objects)
    centre = rng.integers(SIDE // 4, SIDE * 3 // 4, (num_objects, 2))
    with open(file, "wb") as f:
        f.write(b'{"categories": ')
        letters = ("f", "c", "r")
        f.write(orjson.dumps([{"id": k + 1, "name": n, "frequency": letters[k // 401]} for k, n in enumerate(names)]))
        f.write(b', "images": ')
        f.write(
            orjson.dumps(
                [
                    {
                        "id": i,
                        "height": SIDE,
                        "width": SIDE,
                        "coco_url": f"http://images.cocodataset.org/train2017/{i:012d}.jpg",
                        "neg_category_ids": [1, 2, 3],
                        "not_exhaustive_category_ids": [],
                    }
                    for i in range(num_images)
                ]
            )
        )
        f.write(b', "annotations": [')
        for n in range(num_objects):
            r, (x, y) = int(radius[n]), centre[n].tolist()
            polygon = np.round(circle * r + np.tile([x, y], CORNERS), 2).tolist()
            f.write(b", " if n else b"")
            f.write(
                orjson.dumps(
                    {
                        "id": n + 1,
                        "image_id": images[n],
                        "category_id": categories[n],
                        "bbox": [x - r, y - r, 2 * r, 2 * r],
                        "area": 3.1 * r * r,
                        "segmentation": [polygon],
                    }
                )
            )
        f.write(b"]}")
