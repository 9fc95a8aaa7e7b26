#!/usr/bin/env python
"""Measure the evaluation of a Mask R-CNN, part by part: Detectron2 with lvis-api beside ours, on the same weights.

    DETECTRON2_DATASETS=... python -m speed.mask_rcnn --images 10
    DETECTRON2_DATASETS=... python -m speed.mask_rcnn --images 39 --size 480

R-50-FPN of 1,203 categories on images of lvis_v1_val, on one core. No trained weights are needed: random ones, whose
logits are scaled so that a quarter of the scores passes LVIS's threshold of 1e-4, as of a trained sigmoid model. CPU
milliseconds an image of each part, and the peak memory that the process reached, a process for each side.
"""

import argparse
import functools
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from detectron2.data import DatasetMapper, build_detection_test_loader
from detectron2.evaluation import LVISEvaluator as Detectron2LVISEvaluator
from detectron2.modeling import GeneralizedRCNN, build_model
from tabulate import tabulate

from eql_d2.engine.checkpoint import LongTailCheckpointer
from eql_d2.engine.setup import load_config
from eql_d2.evaluation.lvis_evaluation import LVISEvaluator, numpy_of_lvis_api
from speed.measuring import in_own_process, resident_peak

CONFIG = "configs/LVISv1/sigmoid_mask_rcnn_R_50_FPN_1x.yaml"
SIDES = ("detectron2", "eql_d2")
CLASSIFIER = "roi_heads.box_predictor.cls_score"
BIAS, SPREAD, NOISE = -10.5, 1.5, 1.0  # of the class logits: a category's own, and an RoI's


class Parts:
    """CPU seconds by part; a part within another one is not counted in it."""

    def __init__(self):
        self.seconds, self.stack = Counter(), []

    def timed(self, name: str, function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            start = time.process_time()
            self.stack.append(0.0)
            result = function(*args, **kwargs)
            inner, seconds = self.stack.pop(), time.process_time() - start
            self.seconds[name] += seconds - inner
            if self.stack:
                self.stack[-1] += seconds
            return result

        return call

    def time(self, owner, attribute: str, name: str) -> None:
        setattr(owner, attribute, self.timed(name, getattr(owner, attribute)))


def config(side: str, size: int):
    cfg = load_config(CONFIG, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "DATALOADER.NUM_WORKERS", "0"])
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = size, round(size * 5 / 3)
    if side == "detectron2":
        cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
        cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = True
    return cfg


@torch.no_grad()
def make_weights(path: Path, size: int) -> None:
    """Random weights, scaled on one image so that logits, box deltas and mask logits are as large as trained ones."""
    torch.manual_seed(0)
    cfg = config("eql_d2", size)
    model = build_model(cfg).eval()
    image = next(iter(build_detection_test_loader(cfg, cfg.DATASETS.TEST[0])))
    box, rpn, mask = model.roi_heads.box_predictor, model.proposal_generator.rpn_head, model.roi_heads.mask_head
    wanted = {rpn.anchor_deltas: 0.1, box.bbox_pred: 0.5, box.cls_score: NOISE, mask.predictor: 3.0}
    for layer, spread in wanted.items():  # the later ones see what the earlier ones were scaled to
        outputs = []
        hook = layer.register_forward_hook(lambda *call, seen=outputs: seen.append(call[-1]))
        model(image)
        hook.remove()
        layer.weight.mul_(spread / torch.cat([o.flatten() for o in outputs]).std())
    torch.nn.init.normal_(box.cls_score.bias, BIAS, SPREAD)
    state = model.state_dict()
    for name in ("weight", "bias"):  # Detectron2 has a row for background, which sigmoid scores never use
        rows = state[f"{CLASSIFIER}.{name}"]
        state[f"{CLASSIFIER}.{name}"] = torch.cat([rows, torch.zeros_like(rows[:1])])
    torch.save({"model": state}, path)


@torch.no_grad()
def measure(side: str, weights: str, num_images: int, size: int) -> dict:
    cfg, parts = config(side, size), Parts()
    name = cfg.DATASETS.TEST[0]
    parts.time(DatasetMapper, "__call__", "read")
    model = build_model(cfg).eval()
    LongTailCheckpointer(model).load(weights)
    parts.time(model.backbone, "forward", "network: backbone")
    parts.time(model.proposal_generator, "forward", "RPN")
    parts.time(model.roi_heads, "_forward_box", "boxes")
    for module in (model.roi_heads.box_pooler, model.roi_heads.box_head, model.roi_heads.box_predictor):
        parts.time(module, "forward", "network: box head")
    parts.time(model.roi_heads, "_forward_mask", "network: mask head")
    parts.time(GeneralizedRCNN, "_postprocess", "paste")
    with tempfile.TemporaryDirectory() as folder:
        evaluator_class = LVISEvaluator if side == "eql_d2" else Detectron2LVISEvaluator
        evaluator = evaluator_class(name, output_dir=folder)
        evaluator.reset()
        process, evaluate = parts.timed("encode", evaluator.process), parts.timed("files, metrics", evaluator.evaluate)
        detections = 0
        for number, inputs in enumerate(build_detection_test_loader(cfg, name)):
            if number >= num_images:
                break
            outputs = model(inputs)
            detections += sum(len(output["instances"]) for output in outputs)
            process(inputs, outputs)
        with numpy_of_lvis_api():
            evaluate()
    milliseconds = {part: 1e3 * seconds / num_images for part, seconds in parts.seconds.items()}
    return {"ms": milliseconds, "peak MiB": resident_peak(), "detections": detections / num_images}


def table(measured: dict) -> list[dict]:
    """A row for each part, in the order of stock's; "paste" is part of ours' "encode"."""
    parts = measured["detectron2"]["ms"]
    rows = [{"part": part, **{side: measured[side]["ms"].get(part, 0.0) for side in SIDES}} for part in parts]
    beyond = [row for row in rows if not row["part"].startswith(("network", "read", "RPN"))]
    for name, chosen in (("beyond the network", beyond), ("all", rows)):
        rows = [*rows, {"part": name, **{side: sum(row[side] for row in chosen) for side in SIDES}}]
    for row in rows:
        row["of its time"] = row["eql_d2"] / row["detectron2"] if row["detectron2"] else None
    return [*rows, {"part": "peak memory, MiB", **{side: measured[side]["peak MiB"] for side in SIDES}}]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10, help="of lvis_v1_val, from the first (default: 10)")
    parser.add_argument("--size", type=int, default=800, help="short side in pixels (default: 800, LVIS's)")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pth"
        make_weights(weights, args.size)
        measured = {side: in_own_process(measure, side, str(weights), args.images, args.size) for side in SIDES}
    print(tabulate(table(measured), headers="keys", floatfmt=".4g"))
    print("detections an image:", *(f"{side} {measured[side]['detections']:.0f}" for side in SIDES))


if __name__ == "__main__":
    main(parse_args())
