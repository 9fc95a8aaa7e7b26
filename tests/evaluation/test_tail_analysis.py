"""The analysis of an evaluation as a whole: its numbers agree with each other and with the metrics they belong to."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

from eql_d2 import ClassFrequencies, TailRule
from eql_d2.evaluation.lvis_evaluation import LongTailLVISEvaluator
from eql_d2.evaluation.lvis_metrics import METRICS, evaluate_lvis
from eql_d2.evaluation.tail_analysis import TailAnalysis

NAME = "eql_d2_test_tail_analysis"
COUNTS = ClassFrequencies([1, 7, 50, 90, 300, 2000], [1, 9, 70, 91, 700, 9000], num_images=5000)


@pytest.fixture(scope="module")
def scene(cases):
    """Random ground truth in LVIS's format and outputs of a model, some with more than 20 detections an image."""
    truth, results = cases.random_case(1, masks=True)
    ids = [c["id"] for c in truth["categories"]]
    images = {}
    for r in results:
        if r["category_id"] in ids:
            images.setdefault(r["image_id"], []).append(r)
    outputs = {}
    for image_id, of in images.items():
        output = outputs[image_id] = Instances((256, 256))
        boxes = torch.tensor([r["bbox"] for r in of])
        boxes[:, 2:] += boxes[:, :2]
        output.pred_boxes = Boxes(boxes)
        output.scores = torch.tensor([r["score"] for r in of])
        output.pred_classes = torch.tensor([ids.index(r["category_id"]) for r in of])
        output.pred_masks = torch.zeros(len(of), 256, 256, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(output.pred_masks, boxes.round().int().tolist()):
            mask[y1:y2, x1:x2] = True
    return truth, outputs


@pytest.fixture
def dataset(scene, tmp_path):
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(scene[0]))
    ids = [c["id"] for c in scene[0]["categories"]]
    MetadataCatalog.get(NAME).set(
        json_file=str(file),
        thing_classes=[f"category, {i}" for i in ids],
        thing_dataset_id_to_contiguous_id={i: k for k, i in enumerate(ids)},
    )
    yield NAME
    MetadataCatalog.remove(NAME)


def evaluate(dataset, outputs, **kwargs):
    evaluator = LongTailLVISEvaluator(dataset, distributed=False, **kwargs)
    for image_id, output in outputs.items():
        evaluator.process([{"image_id": image_id}], [{"instances": output}])
    return evaluator.evaluate()


def analyse(dataset, outputs, folder, frequencies=COUNTS, tail=TailRule(max_image_count=50), **kwargs):
    analysis = TailAnalysis(dataset, str(folder), frequencies, tail, boundary_ap=True)
    return evaluate(dataset, outputs, analysis=analysis, output_dir=str(folder), **kwargs)


def files(folder, task):
    rows = list(csv.DictReader((folder / f"categories_{task}.csv").read_text().splitlines()))
    return rows, json.loads((folder / f"analysis_{task}.json").read_text())


def mean(rows, column):
    return np.mean([float(r[column]) for r in rows if r[column]])


def test_standard_metrics_and_files_stay_the_same_to_the_last_bit(dataset, scene, tmp_path):
    standard = evaluate(dataset, scene[1], output_dir=str(tmp_path / "standard"))
    analysed = analyse(dataset, scene[1], tmp_path / "analysed", fixed_ap=True)
    for task, metrics in standard.items():
        assert list(metrics) == list(METRICS) == list(analysed[task])[: len(METRICS)]
        assert all(analysed[task][k] == v or math.isnan(v) for k, v in metrics.items())
    for name in ("lvis_instances_results.json", "instances_predictions.pth"):
        ours, theirs = ((tmp_path / folder / name).read_bytes() for folder in ("analysed", "standard"))
        assert ours == theirs


@pytest.mark.parametrize("task", ["bbox", "segm"])
def test_means_over_categories_are_the_metrics(dataset, scene, tmp_path, task):
    metrics = analyse(dataset, scene[1], tmp_path, fixed_ap=True)[task]
    rows, analysis = files(tmp_path, task)
    assert [r["index"] for r in rows] == list("012345") and [r["group"] for r in rows] == list("rcfrcf")
    assert rows[0]["name"] == "category, 2"
    assert (analysis["detections_per_image"], analysis["detections_per_image_and_category"]) == (300, None)
    for column, name in {"AP": "AP", "AP50": "AP50", "AR": "AR@300", "AP-fixed": "AP-fixed"}.items():
        assert mean(rows, column) == pytest.approx(metrics[name], abs=1e-4), column
    for letter in "rcf":
        mine = [r for r in rows if r["group"] == letter]
        assert mean(mine, "AP") == pytest.approx(metrics[f"AP{letter}"], abs=1e-4)
        assert mean(mine, "AP-fixed") == pytest.approx(metrics[f"AP{letter}-fixed"], abs=1e-4)
    assert sum(int(r["objects"]) for r in rows) == analysis["groups"]["all"]["objects"]
    if task == "segm":
        assert mean(rows, "AP-boundary") == pytest.approx(metrics["AP-boundary"], abs=1e-4)
        assert 0 < metrics["AP-boundary"] < metrics["AP"]
    else:
        assert not any(r["AP-boundary"] for r in rows) and "AP-boundary" not in metrics


def test_the_rows_say_how_often_a_category_was_trained_on(dataset, scene, tmp_path):
    analyse(dataset, scene[1], tmp_path)
    rows, analysis = files(tmp_path, "bbox")
    assert [int(r["train_images"]) for r in rows] == COUNTS.image_count.tolist()
    assert [int(r["train_instances"]) for r in rows] == COUNTS.instance_count.tolist()
    assert [r["tail"] for r in rows] == list("111000") and analysis["tail_rule"] == "image count <= 50"
    assert not any(r["AP-fixed"] for r in rows)
    bins = analysis["frequency_bins"]
    assert [(b["min_images"], b["max_images"], b["categories"]) for b in bins] == [
        (1, 1, 1),
        (4, 10, 1),
        (31, 100, 2),
        (101, 300, 1),
        (1001, 3000, 1),
    ]
    # The last category has no object.
    assert [b["evaluated"] for b in bins] == [1, 1, 2, 1, 0] and bins[-1]["AP"] is None
    by_category = {r["name"]: r["AP"] for r in rows}
    assert bins[0]["AP"] == pytest.approx(float(by_category["category, 2"]), abs=1e-4)
    weighted = sum(b["AP"] * b["evaluated"] for b in bins[:-1]) / 5
    assert weighted == pytest.approx(analysis["metrics"]["AP"])


def test_curves_scores_and_answers_fit_the_metrics(dataset, scene, tmp_path):
    metrics = analyse(dataset, scene[1], tmp_path)["bbox"]
    rows, analysis = files(tmp_path, "bbox")
    curves = analysis["curves"]["precision"]
    assert 100 * np.mean(curves["all"]) == pytest.approx(metrics["AP50"]) and len(curves["r"]) == 101
    groups = analysis["calibration"]["groups"]
    counted = [sum(b["detections"] for b in groups[g]["bins"]) for g in ("all", "r", "c", "f")]
    assert counted[0] == sum(counted[1:]) == sum(int(r["detections"]) for r in rows)
    assert metrics["ECE-r"] == pytest.approx(100 * groups["r"]["ece"])
    confusion = analysis["confusion"]
    for shares in confusion["groups"].values():
        assert shares["right"] + shares["wrong"] + shares["missed"] == pytest.approx(1)
        assert sum(shares["wrong_by_group"].values()) == pytest.approx(shares["wrong"])
    assert metrics["confused-r-f"] == pytest.approx(100 * confusion["groups"]["r"]["wrong_by_group"]["f"])
    count = [pair["count"] for pair in confusion["pairs"]]
    wrong = confusion["groups"]["all"]
    assert count == sorted(count, reverse=True) and sum(count) == round(wrong["wrong"] * wrong["objects"])


def test_true_positives_are_those_of_the_lvis_api(cases, scene):
    """Precision of what AP counts, at IoU 0.5: from the API's own matches, without what it ignores."""
    from eql_d2.evaluation.lvis_metrics import GroundTruth, match_lvis

    truth, results = cases.random_case(2)
    api = cases.lvis_api(truth, results, "bbox", 300)
    expected = []
    for of_image in filter(None, api.eval_imgs):
        if of_image["area_rng"] == [0, 1e10]:
            counts = ~of_image["dt_ignore"][0].astype(bool)
            hits = of_image["dt_matches"][0].astype(bool)
            scores = np.array(of_image["dt_scores"])
            expected += zip(scores[counts].tolist(), hits[counts].tolist())
    index, _, hit = match_lvis(GroundTruth.load(truth), results).outcomes()
    ours = list(zip((results[i]["score"] for i in index), hit.tolist()))
    assert sorted(ours) == sorted(expected) and 0 < hit.sum() < len(hit)


def test_without_counts_groups_come_from_the_file(dataset, scene, tmp_path):
    analyse(dataset, scene[1], tmp_path, frequencies=None, tail=None)
    rows, analysis = files(tmp_path, "bbox")
    assert [r["group"] for r in rows] == list("rcfrcf")
    assert not any(r["train_images"] or r["tail"] for r in rows)
    assert analysis["train_counts"] is analysis["tail_rule"] is None and analysis["frequency_bins"] == []


def test_without_letters_groups_come_from_the_counts(dataset, scene, tmp_path):
    truth = dict(scene[0], categories=[{"id": c["id"]} for c in scene[0]["categories"]])
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    metrics = analyse(dataset, scene[1], tmp_path)["bbox"]
    rows, analysis = files(tmp_path, "bbox")
    assert [r["group"] for r in rows] == list("rrccff")
    assert metrics["APr"] == pytest.approx(mean(rows[:2], "AP"), abs=1e-4)
    analyse(dataset, scene[1], tmp_path, frequencies=None, tail=None)
    rows, analysis = files(tmp_path, "bbox")
    assert not any(r["group"] for r in rows) and list(analysis["groups"]) == ["all"]
    assert math.isnan(evaluate(dataset, scene[1])["bbox"]["APr"])


def test_fixed_ap_has_all_detections_and_the_rest_the_best_of_each_image(dataset, scene, tmp_path):
    limited = analyse(dataset, scene[1], tmp_path / "limited", max_dets_per_image=15)["bbox"]
    fixed = analyse(dataset, scene[1], tmp_path / "fixed", max_dets_per_image=15, fixed_ap=True)["bbox"]
    assert {k: fixed[k] for k in METRICS if fixed[k] == fixed[k]} == {
        k: limited[k] for k in METRICS if limited[k] == limited[k]
    }
    assert "AP-fixed" not in limited
    unlimited = evaluate(dataset, scene[1], max_dets_per_image=-1)["bbox"]
    assert fixed["AP-fixed"] == pytest.approx(unlimited["AP"], abs=1e-9) and fixed["AP-fixed"] > limited["AP"]
    saved = torch.load(tmp_path / "fixed" / "instances_predictions.pth", weights_only=True)
    assert max(len(image["score"]) for image in saved) == 15
    results = json.loads((tmp_path / "fixed" / "lvis_instances_results.json").read_text())
    assert 100 * evaluate_lvis(scene[0], results).metrics()["AP"] == pytest.approx(limited["AP"], rel=1e-6)


def test_no_detections_at_all(dataset, scene, tmp_path):
    outputs = {image_id: output[:0] for image_id, output in scene[1].items()}
    metrics = analyse(dataset, outputs, tmp_path, fixed_ap=True)["segm"]
    assert metrics["AP-fixed"] == metrics["AP-boundary"] == metrics["right-r"] == 0
    assert math.isnan(metrics["ECE-all"])
    _, analysis = files(tmp_path, "segm")
    assert analysis["confusion"]["groups"]["all"]["missed"] == 1 and analysis["metrics"]["ECE-all"] is None


def test_fixed_ap_needs_our_own_evaluation(dataset):
    with pytest.raises(ValueError, match="fixed AP is part of the analysis"):
        LongTailLVISEvaluator(dataset, fixed_ap=True)
