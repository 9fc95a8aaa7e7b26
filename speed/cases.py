"""Sections `inference`, `masks` and `evaluation` of python -m speed: beside what they replace, with their memory."""

import functools
import json
import logging
import platform
import tempfile

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import fast_rcnn

from eql_d2.evaluation.lvis_evaluation import numpy_of_lvis_api
from eql_d2.evaluation.lvis_metrics import evaluate_lvis
from eql_d2.modeling import inference
from speed.masks import masks_cases
from speed.measuring import alternate, in_own_process, peak_of
from speed.synthetic import synthetic_lvis

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


CASES = {"inference": inference_cases, "masks": masks_cases, "evaluation": evaluation_cases}


def measure(section: str, repeats: int) -> list[dict]:
    """One row for each variant of each case."""
    rows = []
    for case, make_variants in CASES[section]().items():
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


def peak_memory(section: str, case: str, variant: str) -> float | None:
    """MiB as ``python -m speed --help`` defines it; None where the system cannot tell."""
    if platform.system() != "Linux":
        return None
    # glibc keeps freed memory below this size resident, where a later call would use it unseen.
    return in_own_process(peak_of_variant, section, case, variant, MALLOC_MMAP_THRESHOLD_="65536")


def peak_of_variant(section: str, case: str, variant: str) -> float:
    return peak_of(CASES[section]()[case]()[variant])
