#!/usr/bin/env python
"""Measure what this package makes fast beside the implementations it replaces.

    python -m speed
    python -m speed --sections inference --repeats 5 --output benchmark.json
    python -m speed --sections losses --plot losses.png

Time: CPU time of the process, on one core; median of repeats that alternate between the variants.
Memory (Linux): how far one call raises the peak of the resident set above what is resident before it, in a fresh
process for each variant, in a second call, so that inputs, imports and code pages do not count. Section `losses`: the
peak of what torch's allocator hands out, in sizes of the logits.
"""

import argparse
import functools
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import pycocotools.mask as mask_utils
import torch
import torchvision
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import fast_rcnn
from tabulate import tabulate

from eql_d2.evaluation.lvis_evaluation import numpy_of_lvis_api
from eql_d2.evaluation.lvis_metrics import evaluate_lvis
from eql_d2.modeling import inference
from speed.dense import benchmark_dense
from speed.files import benchmark_files
from speed.losses import benchmark_losses, plot_losses
from speed.masks import masks_cases
from speed.startup import benchmark_startup

# A case is a function that makes the inputs and returns {variant: function without arguments}. The first variant is
# what the others are compared with.


def inference_cases() -> dict:
    """Post-processing of one image at LVIS settings: decoding, threshold 1e-4, NMS at 0.5, the best 300."""
    cases = {}
    for R, K in ((1000, 1203), (300, 1203), (1000, 80)):
        for kind, make_scores in (("trained", trained_scores), ("random", random_scores)):
            for boxes, C in (("K boxes", K), ("1 box", 1)):
                name = f"{R} x {K}, {kind} scores, {boxes}"
                cases[name] = functools.partial(inference_variants, make_scores, R, K, C)
    return cases


def inference_variants(make_scores, R: int, K: int, C: int, device: str = "cpu") -> dict:
    """Stock and ours on R proposals, two thirds of which lie on 20 objects of an 800 x 1333 image."""
    generator = torch.Generator().manual_seed(0)
    image_size = torch.tensor([1333.0, 800.0])
    corner = torch.rand(20, 2, generator=generator) * image_size * 0.75
    size = torch.rand(20, 2, generator=generator) * 250 + 30
    objects = torch.cat([corner, corner + size], dim=1)
    which = torch.randint(0, 30, (R,), generator=generator)  # 20 and above: background
    corner = torch.rand(R, 2, generator=generator) * image_size * 0.75
    size = torch.rand(R, 2, generator=generator) * 300 + 10
    proposals = torch.where(
        (which < 20)[:, None],
        objects[which.clamp(max=19)] + torch.randn(R, 4, generator=generator) * 8,
        torch.cat([corner, corner + size], dim=1),
    )
    deltas = torch.randn(R, 4 * C, generator=generator) * 0.5
    scores, deltas, proposals = make_scores(which, K, generator).to(device), deltas.to(device), proposals.to(device)
    transform = Box2BoxTransform((10.0, 10.0, 5.0, 5.0))
    settings = [scores], [(800, 1333)], 1e-4, 0.5, 300

    def stock():
        return fast_rcnn.fast_rcnn_inference([transform.apply_deltas(deltas, proposals)], *settings)

    def ours():
        if C == 1:
            boxes = transform.apply_deltas(deltas, proposals)
        else:
            boxes = inference.EncodedBoxes(transform, deltas, proposals)
        return inference.fast_rcnn_inference([boxes], *settings)

    return {"detectron2": stock, "eql_d2": ours}


def trained_scores(which: torch.Tensor, K: int, generator) -> torch.Tensor:
    """(R, K + 1) scores as of a trained sigmoid classifier.

    Categories differ in log-odds by their frequency (-10.5 +- 1.5, proposals +- 1: a quarter of the scores pass 1e-4);
    on an object one category is at 1 +- 1 and 11 that look alike at -4 +- 1.
    """
    R = len(which)
    logits = torch.randn(K, generator=generator) * 1.5 - 10.5
    logits = logits + torch.randn(R, K, generator=generator)
    for i in range(20):
        rows = (which == i).nonzero()
        likely = torch.randperm(K, generator=generator)[:12]
        logits[rows, likely] = torch.randn(len(rows), 12, generator=generator) - 4
        logits[rows[:, 0], likely[0]] += 5
    return torch.cat([logits.sigmoid(), torch.zeros(R, 1)], dim=1)


def random_scores(which: torch.Tensor, K: int, generator) -> torch.Tensor:
    """(R, K + 1) scores, uniform in (0, 1): all are candidates."""
    return torch.rand(len(which), K + 1, generator=generator)


def evaluation_cases() -> dict:
    """LVIS's metrics for a dataset of 1,203 categories, from the annotation file and a list of detections."""
    sizes = (("bbox", 2000, 300), ("bbox", 100, 300), ("segm", 1000, 100))
    return {
        f"{iou_type}, {images} images x {boxes}": functools.partial(evaluation_variants, iou_type, images, boxes)
        for iou_type, images, boxes in sizes
    }


def evaluation_variants(iou_type: str, num_images: int, num_boxes: int) -> dict:
    """The LVIS API and ours. Both read the annotations from a file, as an evaluator does."""
    import lvis  # here, since it imports matplotlib and OpenCV

    logging.getLogger("lvis").setLevel(logging.ERROR)
    truth, results = synthetic_lvis(num_images, num_boxes, with_masks=iou_type == "segm")
    file = tempfile.NamedTemporaryFile("w", suffix=".json")  # the variants keep it
    json.dump(truth, file)
    file.flush()

    def lvis_api():
        truth = lvis.LVIS(file.name)
        with numpy_of_lvis_api():
            lvis.LVISEval(truth, lvis.LVISResults(truth, results), iou_type).run()

    return {"lvis": lvis_api, "eql_d2": lambda: evaluate_lvis(file.name, results, iou_type).metrics()}


def synthetic_lvis(num_images: int, num_boxes: int, with_masks: bool) -> tuple[dict, list]:
    """Annotations and detections in LVIS's format, of 1,203 categories on images of 480 x 640 px.

    An image has 12 objects on average, of 1 to 7 categories, and about 10 categories that are known to be absent. Of
    its detections 40 % lie near an object and two in three of these have its category; the others are anywhere,
    of any category; like the objects', categories are drawn with probability 1 / rank^0.9.
    """
    K, height, width = 1203, 480, 640
    rng = np.random.default_rng(0)
    probability = 1 / np.arange(1, K + 1) ** 0.9
    draw = functools.partial(rng.choice, np.arange(1, K + 1), p=probability / probability.sum())
    truth = {
        "images": [],
        "annotations": [],
        "categories": [{"id": k + 1, "frequency": "fcr"[k // 401]} for k in range(K)],
    }
    results = []
    for image_id in range(1, num_images + 1):
        present = draw(rng.integers(1, 8))
        num_objects = max(1, rng.poisson(12))
        categories, boxes = rng.choice(present, num_objects), random_boxes(num_objects, rng)
        truth["images"].append(
            {
                "id": image_id,
                "height": height,
                "width": width,
                "neg_category_ids": np.setdiff1d(draw(12, replace=False), present).tolist(),
                "not_exhaustive_category_ids": present[: rng.integers(0, 2)].tolist(),
            }
        )
        for box, category in zip(boxes.tolist(), categories.tolist()):
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "segmentation": [corners(box)],
                }
            )
        found = synthetic_detections(num_boxes, boxes, categories, draw, rng)
        for box, category, score in zip(*(values.tolist() for values in found)):
            result = {"image_id": image_id, "category_id": category, "score": score}
            if with_masks:
                result["segmentation"] = mask_utils.frPyObjects([corners(box)], height, width)[0]
            else:
                result["bbox"] = box
            results.append(result)
    return truth, results


def synthetic_detections(n: int, objects: np.ndarray, categories: np.ndarray, draw, rng) -> tuple:
    """Boxes (n, 4), categories (n,) and scores (n,) in an image with these objects (num_objects, 4)."""
    near = rng.integers(0, len(objects), int(0.4 * n))
    noise = rng.normal(0, 0.15, (len(near), 4)) * np.tile(objects[near, 2:], 2)
    moved = np.maximum(objects[near] + noise, [0, 0, 1, 1])
    found = draw(n)
    right = np.flatnonzero(rng.uniform(size=len(near)) < 2 / 3)
    found[right] = categories[near[right]]
    boxes = np.concatenate([moved, random_boxes(n - len(near), rng)])
    return boxes, found, rng.beta(1, 8, n)


def random_boxes(n: int, rng) -> np.ndarray:
    """(n, 4) x, y, w, h in an image of 480 x 640 px; sides of 8 to 300 px, log-uniform."""
    size = np.exp(rng.uniform(np.log(8), np.log(300), (n, 2)))
    return np.concatenate([rng.uniform(0, 1, (n, 2)) * ([640, 480] - size), size], axis=1)


def corners(box: list) -> list:
    """Polygon of a box (x, y, w, h)."""
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def measure_section(section: str, repeats: int) -> list[dict]:
    return measure(section, CASES[section](), repeats)


CASES = {"inference": inference_cases, "masks": masks_cases, "evaluation": evaluation_cases}
SECTIONS = {
    **{name: functools.partial(measure_section, name) for name in CASES},
    "losses": lambda repeats: benchmark_losses(alternate, repeats),
    "dense": lambda repeats: benchmark_dense(alternate, repeats),
    "startup": benchmark_startup,
    "files": benchmark_files,
}


def measure(section: str, cases: dict, repeats: int) -> list[dict]:
    """One row for each variant of each case."""
    rows = []
    for case, make_variants in cases.items():
        seconds = alternate(make_variants(), repeats)
        memory = {variant: peak_memory(section, case, variant) for variant in seconds}
        baseline = next(iter(seconds))
        for variant in seconds:
            row = {
                "section": section,
                "case": case,
                "variant": variant,
                "ms": seconds[variant] * 1e3,
                "times faster": seconds[baseline] / seconds[variant],
            }
            if memory[variant] is not None:
                row["peak MiB"] = memory[variant]
                row["of its memory"] = memory[variant] / memory[baseline]
            rows.append(row)
    return rows


def alternate(variants: dict, repeats: int) -> dict[str, float]:
    """Median seconds of each variant; the first round warms up and does not count."""
    seconds = {name: [] for name in variants}
    for _ in range(1 + repeats):
        for name, call in variants.items():
            start = time.process_time()
            call()
            seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def peak_memory(section: str, case: str, variant: str) -> float | None:
    """MiB as the module's docstring defines it; None where the system cannot tell."""
    if platform.system() != "Linux":
        return None
    # glibc keeps freed memory below this size resident, where a later call would use it unseen.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "speed", "--peak-memory", section, case, variant]
    result = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return float(result.stdout.split()[-1])


def own_peak_memory(call) -> float:
    """MiB by which a second call raises this process' peak."""
    call()
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")  # resets the peak to what is resident now
    before = resident_peak()
    call()
    return (resident_peak() - before) / 1024


def resident_peak() -> int:
    """KiB; ru_maxrss would not do, since a process starts with that of its parent."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM:"))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all")
    parser.add_argument("--repeats", type=int, default=3, help="rounds that count (default: 3)")
    parser.add_argument("--output", help="JSON file to write the rows to")
    parser.add_argument("--plot", help="file to draw the section `losses` to")
    parser.add_argument(
        "--before", help="folder of a checkout of another version, which the section `files` measures too"
    )
    parser.add_argument("--peak-memory", nargs=3, metavar=("SECTION", "CASE", "VARIANT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main(args):
    torch.set_num_threads(1)
    if args.peak_memory:
        section, case, variant = args.peak_memory
        print(own_peak_memory(CASES[section]()[case]()[variant]))
        return
    if args.plot and "losses" not in args.sections:
        raise SystemExit("--plot draws the section losses: add it to --sections")
    rows = []
    for section in args.sections:
        extra = [args.before] if section == "files" else []
        rows_of_section = SECTIONS[section](args.repeats, *extra)
        print(tabulate(rows_of_section, headers="keys", floatfmt=".4g"), end="\n\n", flush=True)
        rows += rows_of_section
    if args.plot:
        plot_losses([row for row in rows if row["section"] == "losses"], args.plot)
    if args.output:
        versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
        with open(args.output, "w") as f:
            json.dump({"versions": versions, "repeats": args.repeats, "rows": rows}, f, indent=1)


if __name__ == "__main__":
    main(parse_args())
