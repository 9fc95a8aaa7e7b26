"""Our evaluator against the LVIS API itself."""

import json
import math
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

from eql_d2.evaluation.lvis_evaluation import LVISEvaluator


@contextmanager
def np_float():
    """What people do by hand for the LVIS API: put np.float back."""
    np.float = float
    yield
    del np.float


@pytest.fixture
def dataset(shared_data, tmp_path):
    name = "eql_d2_test_lvis"
    MetadataCatalog.get(name).set(json_file=str(shared_data / "evaluation" / "lvis_v1_rater1.json"))
    yield name
    MetadataCatalog.remove(name)


def predictions(shared_data):
    """The second rater's boxes as detections, with distinct scores, some moved."""
    file = json.loads((shared_data / "evaluation" / "lvis_v1_rater2_as_detections.json").read_text())
    detections = file if isinstance(file, list) else file["annotations"]
    rng = np.random.default_rng(0)
    return [
        {
            "image_id": d["image_id"],
            "category_id": d["category_id"],
            "bbox": (np.array(d["bbox"]) + rng.uniform(-2, 2, 4) * [1, 1, 0, 0]).tolist(),
            "score": float(rng.uniform()),
        }
        for d in detections
    ]


def run(dataset, detections, **kwargs):
    evaluator = LVISEvaluator(dataset, tasks=("bbox",), distributed=False, **kwargs)
    evaluator.reset()
    images = {}
    for d in detections:
        images.setdefault(d["image_id"], []).append(d)
    for image_id, dets in images.items():
        instances = Instances((1000, 1000))
        boxes = torch.tensor([d["bbox"] for d in dets], dtype=torch.float64)
        boxes[:, 2:] += boxes[:, :2]
        instances.pred_boxes = Boxes(boxes)
        instances.scores = torch.tensor([d["score"] for d in dets], dtype=torch.float64)
        instances.pred_classes = torch.tensor([d["category_id"] - 1 for d in dets])
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


@pytest.mark.parametrize("max_dets", [300, 2])
def test_figures_are_the_lvis_apis(shared_data, dataset, max_dets):
    from lvis import LVIS, LVISEval, LVISResults

    detections = predictions(shared_data)
    results = run(dataset, detections, max_dets_per_image=max_dets)
    with np_float():
        truth = LVIS(MetadataCatalog.get(dataset).json_file)
        api = LVISEval(truth, LVISResults(truth, detections, max_dets=max_dets), "bbox")
        api.run()
        expected = api.get_results()
    assert results["AP"] > 5
    for name, score in results.items():
        # Detectron2 hands the API float32 boxes, so an IoU can move in the 8th digit.
        if expected[name] < 0:
            assert math.isnan(score)
        else:
            assert score == pytest.approx(100 * expected[name], rel=1e-6), name


def test_numpy_is_left_as_it_was(shared_data, dataset):
    import lvis.eval

    run(dataset, predictions(shared_data)[:10])
    assert lvis.eval.np is np and not hasattr(np, "float")
