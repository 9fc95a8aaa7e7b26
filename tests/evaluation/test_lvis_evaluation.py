"""Our evaluator against the LVIS API and against Detectron2's evaluator."""

import json
import math
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import LVISEvaluator as D2LVISEvaluator
from detectron2.structures import Boxes, Instances

from eql_d2.errors import InputError
from eql_d2.evaluation.lvis_evaluation import BACKENDS, LongTailLVISEvaluator
from eql_d2.evaluation.lvis_metrics import METRICS


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


@pytest.fixture
def small_dataset(tmp_path):
    """Two images of 40 x 50 px with an object each, of two categories."""
    name, file = "eql_d2_test_small_lvis", tmp_path / "small.json"
    federated = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    images = [{"id": i, "height": 40, "width": 50, **federated} for i in (1, 2)]
    objects = [
        {
            "id": i,
            "image_id": i,
            "category_id": i,
            "bbox": [10, 10, 20, 15],
            "area": 300,
            "segmentation": [[10, 10, 30, 10, 30, 25, 10, 25]],
        }
        for i in (1, 2)
    ]
    categories = [{"id": 1, "frequency": "r"}, {"id": 2, "frequency": "f"}]
    file.write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))
    MetadataCatalog.get(name).set(json_file=str(file))
    yield name
    MetadataCatalog.remove(name)


def instances(boxes, scores, classes, with_masks=False):
    """In an image of 40 x 50 px; boxes (x1, y1, x2, y2) in whole pixels, and masks that fill them."""
    result = Instances((40, 50))
    result.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    result.scores = torch.tensor(scores, dtype=torch.float32)
    result.pred_classes = torch.tensor(classes, dtype=torch.int64)
    if with_masks:
        result.pred_masks = torch.zeros(len(boxes), 40, 50, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(result.pred_masks, boxes):
            mask[y1:y2, x1:x2] = True
    return result


def small_outputs(with_masks=True):
    """Detections in the two images of ``small_dataset``: a hit after a miss, and a near hit."""
    one = instances([[10, 10, 30, 25], [0, 0, 9, 9]], [0.4, 0.9], [0, 0], with_masks)
    other = instances([[11, 10, 30, 25]], [0.5], [1], with_masks)
    return {1: one, 2: other}


def evaluate(evaluator, outputs):
    """``outputs``: image id -> Instances."""
    evaluator.reset()
    for image_id, output in outputs.items():
        evaluator.process([{"image_id": image_id}], [{"instances": output}])
    return evaluator.evaluate()


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
    evaluator = LongTailLVISEvaluator(dataset, tasks=("bbox",), distributed=False, **kwargs)
    images, outputs = {}, {}
    for d in detections:
        images.setdefault(d["image_id"], []).append(d)
    for image_id, dets in images.items():
        output = outputs[image_id] = Instances((1000, 1000))
        boxes = torch.tensor([d["bbox"] for d in dets], dtype=torch.float64)
        boxes[:, 2:] += boxes[:, :2]
        output.pred_boxes = Boxes(boxes)
        output.scores = torch.tensor([d["score"] for d in dets], dtype=torch.float64)
        output.pred_classes = torch.tensor([d["category_id"] - 1 for d in dets])
    return evaluate(evaluator, outputs)["bbox"]


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
    assert list(results) == list(expected) == list(METRICS)
    for name, score in results.items():
        # Detectron2's Boxes are float32, so an IoU can move in the 8th digit.
        if expected[name] < 0:
            assert math.isnan(score)
        else:
            assert score == pytest.approx(100 * expected[name], rel=1e-6), name


def test_numpy_is_left_as_it_was(small_dataset):
    import lvis.eval

    evaluate(LongTailLVISEvaluator(small_dataset, distributed=False, backend="lvis"), small_outputs())
    assert lvis.eval.np is np and not hasattr(np, "float")


def test_both_backends_agree_on_real_annotations(shared_data, dataset):
    detections = predictions(shared_data)
    ours, reference = [run(dataset, detections, backend=backend) for backend in BACKENDS]
    assert ours == pytest.approx(reference, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("max_dets", [None, 1, -1])
def test_both_backends_agree_with_masks(small_dataset, max_dets):
    ours, reference = [
        evaluate(
            LongTailLVISEvaluator(small_dataset, distributed=False, max_dets_per_image=max_dets, backend=backend),
            small_outputs(),
        )
        for backend in BACKENDS
    ]
    assert list(ours) == ["bbox", "segm"]
    for task in ours:
        assert ours[task] == pytest.approx(reference[task], rel=1e-12, nan_ok=True)
        assert 0 <= ours[task]["APr"] < ours[task]["APf"] <= 100
        assert math.isnan(ours[task]["APc"]) and math.isnan(ours[task]["APl"])


@pytest.mark.parametrize("mapping", [None, {2: 0, 1: 1}])
def test_figures_and_results_file_are_detectron2s(small_dataset, tmp_path, mapping):
    """Byte for byte the file; with and without a mapping of category ids, which this one swaps."""
    if mapping:
        MetadataCatalog.get(small_dataset).thing_dataset_id_to_contiguous_id = mapping
    results = {}
    for evaluator_class in (D2LVISEvaluator, LongTailLVISEvaluator):
        folder = str(tmp_path / evaluator_class.__module__)
        evaluator = evaluator_class(small_dataset, distributed=False, output_dir=folder)
        with np_float():
            results[evaluator_class] = evaluate(evaluator, small_outputs())
        results[evaluator_class, "file"] = (tmp_path / folder / "lvis_instances_results.json").read_bytes()
    ours, theirs = results[LongTailLVISEvaluator], results[D2LVISEvaluator]
    assert (ours["segm"]["AP"] > 0) == (mapping is None)
    assert results[LongTailLVISEvaluator, "file"] == results[D2LVISEvaluator, "file"]
    for task, scores in theirs.items():
        for name, score in scores.items():
            # Detectron2 hands out the API's -1 as -100.
            expected = score if score >= 0 else math.nan
            assert ours[task][name] == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_predictions_file_holds_what_was_predicted(small_dataset, tmp_path):
    evaluator = LongTailLVISEvaluator(small_dataset, distributed=False, output_dir=str(tmp_path))
    evaluate(evaluator, small_outputs())
    saved = torch.load(tmp_path / "instances_predictions.pth", weights_only=True)
    assert [image["image_id"] for image in saved] == [1, 2]
    assert saved[0]["category_id"].tolist() == [0, 0]
    assert saved[0]["bbox"].tolist() == [[10, 10, 20, 15], [0, 0, 9, 9]]
    assert saved[0]["score"].dtype == torch.float32
    assert saved[0]["mask_size"] == [40, 50] and len(saved[0]["mask_counts"]) == 2


@pytest.mark.parametrize("with_masks", [True, False])
def test_no_detections_score_zero_where_there_are_objects(small_dataset, tmp_path, with_masks):
    outputs = {i: instances([], [], [], with_masks) for i in (1, 2)}
    evaluator = LongTailLVISEvaluator(small_dataset, distributed=False, output_dir=str(tmp_path))
    results = evaluate(evaluator, outputs)
    assert list(results) == (["bbox", "segm"] if with_masks else ["bbox"])
    for scores in results.values():
        assert scores["AP"] == scores["APr"] == scores["APs"] == scores["AR@300"] == 0
        assert math.isnan(scores["APc"]) and math.isnan(scores["APl"])
    assert json.loads((tmp_path / "lvis_instances_results.json").read_text()) == []
    reference = LongTailLVISEvaluator(small_dataset, distributed=False, backend="lvis")
    assert all(math.isnan(v) for v in evaluate(reference, outputs)["bbox"].values())


def test_an_image_without_detections_among_others(small_dataset):
    outputs = small_outputs() | {1: instances([], [], [], with_masks=True)}
    scores = evaluate(LongTailLVISEvaluator(small_dataset, distributed=False), outputs)["segm"]
    assert scores["APr"] == 0 and scores["APf"] > 0


def test_predictions_of_all_processes_are_gathered(small_dataset, monkeypatch):
    expected = evaluate(LongTailLVISEvaluator(small_dataset, distributed=False), small_outputs())
    evaluator = LongTailLVISEvaluator(small_dataset)
    evaluate(evaluator, small_outputs())
    first, second = ([p] for p in evaluator._predictions)
    monkeypatch.setattr("detectron2.utils.comm.gather", lambda own, dst: [own, second])
    evaluator._predictions = first
    gathered = evaluator.evaluate()
    assert gathered["segm"] == pytest.approx(expected["segm"], nan_ok=True)
    monkeypatch.setattr("detectron2.utils.comm.is_main_process", lambda: False)
    assert evaluator.evaluate() is None


def test_no_images_and_no_annotations_have_no_results(small_dataset, tmp_path):
    assert evaluate(LongTailLVISEvaluator(small_dataset, distributed=False), {}) == {}
    file = tmp_path / "without.json"
    file.write_text(json.dumps({"images": [{"id": 1}], "categories": [{"id": 1}]}))
    MetadataCatalog.get(small_dataset).__dict__["json_file"] = str(file)
    evaluator = LongTailLVISEvaluator(small_dataset, distributed=False, output_dir=str(tmp_path))
    assert evaluate(evaluator, small_outputs()) == {}
    assert len(json.loads((tmp_path / "lvis_instances_results.json").read_text())) == 3


def test_errors_say_what_is_wrong(small_dataset, tmp_path):
    with pytest.raises(ValueError, match="one of eql_d2, lvis, got 'coco': set TEST.LVIS_BACKEND"):
        LongTailLVISEvaluator(small_dataset, backend="coco")
    evaluator = LongTailLVISEvaluator(small_dataset, distributed=False)
    with pytest.raises(ValueError, match=r"outputs have \['proposals'\]"):
        evaluator.process([{"image_id": 1}], [{"proposals": None}])
    (tmp_path / "small.json").unlink()
    with pytest.raises(InputError, match="json_file of dataset 'eql_d2_test_small_lvis'"):
        LongTailLVISEvaluator(small_dataset)


def test_the_lvis_package_is_not_needed(small_dataset, monkeypatch):
    """Importing it takes a second, for matplotlib and OpenCV."""
    for module in ("lvis", "lvis.eval"):
        monkeypatch.setitem(sys.modules, module, None)
    evaluator = LongTailLVISEvaluator(small_dataset, distributed=False)
    assert evaluate(evaluator, small_outputs())["segm"]["AP"] > 0
