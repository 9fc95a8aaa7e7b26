"""Sections `startup` and `files` of python -m speed: what happens before the first step, each in a process of its own.

`startup`: what an import takes, and reading an annotation file with as many images, categories and objects as LVIS v1's
training set. `files`: from the start to the first batch. Of the training set: Detectron2's loader of it, or this
package's checks of it and its loader, with repeat factor sampling. Of the test set: checks, a loader of it, and an
evaluation in which nothing was detected. `--before` gives a checkout of another version of this package, to be measured
too.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from speed.synthetic import link_images, write_annotations

# How often the file is opened, CPU seconds, MiB by which the peak of the resident set rises, and MiB that are still
# held, of what is `measured`, after what is `before` and `after` it.
MEASURE = """
import ctypes, gc, sys, time
file, folder = sys.argv[1:]
opened = []
sys.addaudithook(lambda event, args: event == "open" and args[0] == file and opened.append(file))
def resident(which):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(which)) / 1024
{before}
held, start = resident("VmRSS:"), time.process_time()
{measured}
used = len(opened), time.process_time() - start, resident("VmHWM:") - held
{after}
print(*used, resident("VmRSS:") - held)
"""

# Of `startup`, what runs before and what is measured; it is held as `data`.
CFG = """
from eql_d2.config import default_config
from detectron2.data import DatasetCatalog, DatasetFromList
from detectron2.data.datasets.lvis import load_lvis_json
DatasetCatalog.register("a", lambda: load_lvis_json(file, "."))
cfg = default_config()
cfg.DATASETS.TRAIN = ("a",)
"""
OURS_LOADS = f"{CFG}from eql_d2.data.loading import load_training_dicts as load"
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
            f"{CFG}from detectron2.data import get_detection_dataset_dicts as load",
            "data = DatasetFromList(load(cfg.DATASETS.TRAIN), copy=False)",
        ),
        "eql_d2, with masks": (
            f"{OURS_LOADS}; cfg.MODEL.MASK_ON = True",
            "data = DatasetFromList(load(cfg), copy=False)",
        ),
        "eql_d2, boxes only": (OURS_LOADS, "data = DatasetFromList(load(cfg), copy=False)"),
    },
}

# Of `files`.
SIZES = {"train": (99_388, 1_270_141), "val": (19_809, 244_707)}  # images and objects of LVIS v1
BEFORE = """
import logging
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
name = "lvis_v1_of_speed"
register_lvis_instances(name, get_lvis_instances_meta("lvis_v1"), file, folder + "/")
cfg = default_config()
cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ((name,), ()) if {train} else ((), (name,))
cfg.MODEL.MASK_ON, cfg.MODEL.DEVICE, cfg.MODEL.ROI_HEADS.NUM_CLASSES = True, "cpu", 1203
cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD = "RepeatFactorTrainingSampler", 0.001
cfg.DATALOADER.NUM_WORKERS, cfg.INPUT.MIN_SIZE_TRAIN = 0, (64,)
cfg.OUTPUT_DIR = folder + "/output"
nothing = Instances((64, 64), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
nothing.pred_classes, nothing.pred_masks = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 64, 64, dtype=torch.bool)
def evaluated(evaluator):
    evaluator.reset()
    evaluator.process([dict(image_id=0)], [dict(instances=nothing)])
    evaluator.evaluate()
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


def benchmark_startup(repeats: int) -> list[dict]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "annotations.json"
        write_annotations(file, SIZES["train"][0], 1_200_000, corners_of_each=4)
        for case, variants in CASES.items():
            only_data_is_held = "gc.collect()\nctypes.CDLL(None).malloc_trim(0)"
            codes = {name: (before, measured, only_data_is_held) for name, (before, measured) in variants.items()}
            rows += rows_of("startup", case, codes, file, repeats)
    return rows


def benchmark_files(repeats: int, before: str | None = None) -> list[dict]:
    """
    Args:
        before: the folder of a checkout of another version of this package.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for split, (num_images, num_objects) in SIZES.items():
            file = Path(folder) / f"{split}.json"
            write_annotations(file, num_images, num_objects, corners_of_each=30)
            link_images(Path(folder) / "train2017", num_images)
            prepare = BEFORE.format(train=split == "train")
            codes = {"detectron2": (prepare, DETECTRON2[split], ""), "eql_d2": (prepare, OURS[split], "")}
            trees = {}
            if before is not None:
                codes["eql_d2, before"], trees["eql_d2, before"] = codes["eql_d2"], before
            case = f"LVIS {split}'s size, {file.stat().st_size / 2**20:.0f} MiB"
            rows += rows_of("files", case, codes, file, repeats, trees)
            file.unlink()
    return rows


def rows_of(section: str, case: str, codes: dict, file: Path, repeats: int, trees: dict | None = None) -> list[dict]:
    """One row for each variant; the first is what the others are compared with.

    Args:
        codes: variant -> what is before, measured and after.
        trees: variant -> the checkout it runs in, if it is another than this one.
    """
    runs: dict[str, list] = {variant: [] for variant in codes}
    for _ in range(repeats):
        for variant, code in codes.items():
            runs[variant].append(run(code, file, (trees or {}).get(variant, ".")))
    medians = {variant: [statistics.median(values) for values in zip(*of)] for variant, of in runs.items()}
    _, first_seconds, first_peak, _ = next(iter(medians.values()))
    return [
        {
            "section": section,
            "case": case,
            "variant": variant,
            "parsed": int(parsed),
            "CPU s": seconds,
            "of its time": seconds / first_seconds,
            "peak MiB": peak,
            "of its peak": peak / first_peak,
            "held MiB": held,
        }
        for variant, (parsed, seconds, peak, held) in medians.items()
    ]


def run(code: tuple[str, str, str], file: Path, tree: str) -> list[float]:
    program = MEASURE.format(**dict(zip(("before", "measured", "after"), code, strict=True)))
    command = [sys.executable, "-W", "ignore", "-c", program, str(file), str(file.parent)]
    environment = {**os.environ, "PYTHONPATH": os.path.abspath(tree)}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=tree, env=environment).stdout
    return list(map(float, output.split()[-4:]))
