"""COCO's metrics stay Detectron2's, and our AP by category is COCO's."""

import contextlib
import copy
import csv
import inspect
import io
import json

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from eql_d2 import ClassFrequencies
from eql_d2.evaluation.coco_evaluation import LongTailCOCOEvaluator, best_instances
from eql_d2.evaluation.lvis_metrics import AREA_RANGES, COCO_MAX_DETS, GroundTruth, evaluate_lvis
from eql_d2.evaluation.tail_analysis import TailAnalysis

NAME = "eql_d2_test_coco_evaluation"


def coco_case(cases, seed, **kwargs):
    """A random case in COCO's format: a fifth of the objects are crowd regions; flags that COCO does not know stay."""
    truth, results = cases.random_case(seed, **kwargs)
    rng = np.random.default_rng(seed)
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = int(rng.uniform() < 0.2)
    for image in truth["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    ids = {c["id"] for c in truth["categories"]}
    return truth, [r for r in results if r["category_id"] in ids]


def coco_api(truth, results, iou_type):
    """COCO's evaluation, after ``accumulate``."""
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = copy.deepcopy(truth)
        api.createIndex()
        results = copy.deepcopy(results)
        if iou_type == "segm":
            for result in results:  # as Detectron2 does: an area is the mask's then
                result.pop("bbox", None)
        evaluation = COCOeval(api, api.loadRes(results), iou_type)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def assert_equal(truth, results, iou_type):
    expected = coco_api(truth, results, iou_type).eval
    loaded = GroundTruth.load(truth, federated=False)
    curves = evaluate_lvis(loaded, results, iou_type, COCO_MAX_DETS)
    np.testing.assert_allclose(curves.precision, expected["precision"][..., -1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(curves.recall, expected["recall"][..., -1], rtol=0, atol=1e-12)
    return curves


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(5))
def test_curves_of_every_category_are_cocos(cases, seed, iou_type):
    truth, results = coco_case(cases, seed, masks=iou_type == "segm")
    assert 0 < assert_equal(truth, results, iou_type).ap() < 1


def test_the_limit_is_per_image_and_category():
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20]}
    truth = {
        "images": [{"id": 1}],
        "annotations": [box | {"id": 1, "area": 400, "iscrowd": 0}],
        "categories": [{"id": 1}, {"id": 2}],
    }
    miss, hit = box | {"bbox": [50, 50, 20, 20], "score": 0.9}, box | {"score": 0.1}
    assert assert_equal(truth, [miss] * 100 + [hit], "bbox").ap() == 0
    assert assert_equal(truth, [miss] * 99 + [hit], "bbox").ap() > 0
    assert assert_equal(truth, [miss | {"category_id": 2}] * 300 + [hit], "bbox").ap() == pytest.approx(1)


def test_a_crowd_takes_any_number_of_detections():
    box = {"image_id": 1, "category_id": 1}
    crowd = box | {"id": 1, "bbox": [0, 0, 100, 100], "area": 10_000, "iscrowd": 1}
    single = box | {"id": 2, "bbox": [200, 0, 20, 20], "area": 400, "iscrowd": 0}
    truth = {"images": [{"id": 1}], "annotations": [crowd, single], "categories": [{"id": 1}]}
    inside = [box | {"bbox": [10 * i, 10, 20, 20], "score": 0.9} for i in range(5)]
    results = [*inside, box | {"bbox": [200, 0, 20, 20], "score": 0.1}]
    assert assert_equal(truth, results, "bbox").ap() == pytest.approx(1)
    outside = [r | {"bbox": [200, 200, 20, 20]} for r in inside]
    assert assert_equal(truth, [*outside, results[-1]], "bbox").ap() < 0.2


def jittered_outputs(truth, ids, num_objects=3):
    """Detections near the objects of each image, with names that are often wrong."""
    rng = np.random.default_rng(0)
    outputs = {}
    for image in truth["images"]:
        boxes, classes = [], []
        for a in (a for a in truth["annotations"] if a["image_id"] == image["id"]):
            for _ in range(num_objects):
                x, y, w, h = np.add(a["bbox"], rng.normal(0, 0.08, 4) * np.tile(a["bbox"][2:], 2))
                boxes.append([x, y, x + max(w, 1), y + max(h, 1)])
                right = rng.uniform() < 0.7
                classes.append(ids.index(a["category_id"]) if right else int(rng.integers(len(ids))))
        output = outputs[image["id"]] = Instances((image["height"], image["width"]))
        output.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        output.scores = torch.tensor(rng.uniform(size=len(boxes)), dtype=torch.float32)
        output.pred_classes = torch.tensor(classes, dtype=torch.int64)
    return outputs


@pytest.fixture
def coco(shared_data):
    """Real COCO annotations under a name of their own."""
    file = shared_data / "coco" / "annotations" / "instances_val2017.json"
    truth = json.loads(file.read_text())
    ids = sorted(c["id"] for c in truth["categories"])
    names = {c["id"]: c["name"] for c in truth["categories"]}
    MetadataCatalog.get(NAME).set(
        json_file=str(file),
        evaluator_type="coco",
        thing_classes=[names[i] for i in ids],
        thing_dataset_id_to_contiguous_id={i: k for k, i in enumerate(ids)},
    )
    yield truth, ids
    MetadataCatalog.remove(NAME)


def evaluate(evaluator, outputs):
    evaluator.reset()
    for image_id, output in outputs.items():
        evaluator.process([{"image_id": image_id}], [{"instances": output}])
    return evaluator.evaluate()


def test_on_real_coco_annotations(coco, tmp_path):
    truth, ids = coco
    outputs = jittered_outputs(truth, ids)
    frequencies = ClassFrequencies.from_annotations(MetadataCatalog.get(NAME).json_file)
    standard = evaluate(COCOEvaluator(NAME, distributed=False, use_fast_impl=False), outputs)["bbox"]
    analysis = TailAnalysis(NAME, str(tmp_path), frequencies)
    evaluator = LongTailCOCOEvaluator(
        NAME, analysis, distributed=False, use_fast_impl=False, output_dir=str(tmp_path), fixed_ap=True
    )
    metrics = evaluate(evaluator, outputs)["bbox"]
    assert 20 < standard["AP"] < 90
    assert {k: metrics[k] for k, v in standard.items() if v == v} == {k: v for k, v in standard.items() if v == v}

    rows = list(csv.DictReader((tmp_path / "categories_bbox.csv").read_text().splitlines()))
    for row in rows:  # AP by category is the one that Detectron2 names "AP-<category>"
        expected = standard[f"AP-{row['name']}"]
        assert (row["AP"] == "") == (expected != expected)
        assert row["AP"] == "" or float(row["AP"]) == pytest.approx(expected, abs=1e-3)
    ap = np.mean([float(row["AP"]) for row in rows if row["AP"]])
    assert ap == pytest.approx(standard["AP"], abs=1e-3)
    of_group = [float(row["AP"]) for row in rows if row["AP"] and row["group"] == "r"]
    assert metrics["APr"] == pytest.approx(np.mean(of_group), abs=1e-3) and len(of_group) < len(rows)
    assert metrics["AP-fixed"] == pytest.approx(standard["AP"], abs=1e-3)  # less than 100 of any category in an image
    assert [int(row["category_id"]) for row in rows] == ids


def test_with_fixed_ap_the_standard_metrics_have_the_best_of_each_image(coco, tmp_path):
    truth, ids = coco
    outputs = jittered_outputs(truth, ids)
    best = {image_id: best_instances(output, 4) for image_id, output in outputs.items()}
    assert max(len(output) for output in outputs.values()) > 20 >= max(map(len, best.values()))
    analysis = TailAnalysis(NAME, str(tmp_path))
    few = evaluate(LongTailCOCOEvaluator(NAME, analysis, distributed=False, use_fast_impl=False), best)["bbox"]
    fixed = LongTailCOCOEvaluator(
        NAME, analysis, distributed=False, use_fast_impl=False, fixed_ap=True, max_dets_per_image=4
    )
    metrics = evaluate(fixed, outputs)["bbox"]
    assert metrics["AP"] == few["AP"] and metrics["AP-fixed"] > metrics["AP"] and "AP-fixed" not in few


def test_the_answers_of_a_full_image_are_those_that_ap_counts(tmp_path):
    """100 detections of one category do not hide another's, whose AP is 100: COCO limits each category alone."""
    name, file = f"{NAME}_full", tmp_path / "truth.json"
    box = {"image_id": 1, "bbox": [0, 0, 20, 20], "area": 400, "iscrowd": 0}
    objects = [box | {"id": 1, "category_id": 1}, box | {"id": 2, "category_id": 2, "bbox": [300, 300, 20, 20]}]
    image = {"id": 1, "height": 400, "width": 400}
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    file.write_text(json.dumps({"images": [image], "annotations": objects, "categories": categories}))
    MetadataCatalog.get(name).set(json_file=str(file), thing_dataset_id_to_contiguous_id={1: 0, 2: 1})
    elsewhere = [[100, 100, 120, 120]] * 100
    output = Instances((400, 400), pred_boxes=Boxes(torch.tensor([*elsewhere, [0, 0, 20, 20]], dtype=torch.float32)))
    output.scores = torch.tensor([0.9] * 100 + [0.5])
    output.pred_classes = torch.tensor([1] * 100 + [0])
    analysis = TailAnalysis(name, str(tmp_path))
    try:
        metrics = evaluate(LongTailCOCOEvaluator(name, analysis, distributed=False, use_fast_impl=False), {1: output})
    finally:
        MetadataCatalog.remove(name)
    content = json.loads((tmp_path / "analysis_bbox.json").read_text())
    assert metrics["bbox"]["AP"] == pytest.approx(50)  # 100 of the one category and 0 of the other
    shares = content["confusion"]["groups"]["all"]
    assert (shares["right"], shares["missed"]) == (0.5, 0.5)
    assert (content["detections_per_image"], content["detections_per_image_and_category"]) == (None, 100)


def test_best_instances():
    instances = Instances((9, 9), scores=torch.tensor([0.1, 0.9, 0.5, 0.9]), index=torch.arange(4))
    assert best_instances(instances, 2).index.tolist() == [1, 3]
    assert best_instances(instances, 9) is best_instances(instances, -1) is instances


def test_no_images_and_a_part_of_the_images(coco, tmp_path):
    truth, ids = coco
    analysis = TailAnalysis(NAME, str(tmp_path))
    evaluator = LongTailCOCOEvaluator(NAME, analysis, distributed=False, use_fast_impl=False)
    assert evaluate(evaluator, {}) == {}
    outputs = jittered_outputs(truth, ids)
    evaluator.reset()
    for image_id, output in outputs.items():
        evaluator.process([{"image_id": image_id}], [{"instances": output}])
    assert "AP" in evaluator.evaluate(img_ids=list(outputs)[:5])["bbox"]
    assert not (tmp_path / "categories_bbox.csv").exists()


def test_what_we_override_is_detectron2s():
    assert list(inspect.signature(COCOEvaluator._eval_predictions).parameters) == ["self", "predictions", "img_ids"]
    assert list(AREA_RANGES) == coco_areas()


def coco_areas():
    from pycocotools.cocoeval import Params

    return Params("bbox").areaRngLbl
