"""Our metrics against the LVIS API's, which must be equal."""

import copy
import json
import logging

import numpy as np
import pycocotools.mask as mask_utils
import pytest

from eql_d2.evaluation.lvis_evaluation import numpy_of_lvis_api
from eql_d2.evaluation.lvis_metrics import Detections, GroundTruth, evaluate_lvis
from eql_d2.mini_lvis.generator import MiniLVISSpec, generate

SIDE = 256  # of random images, in pixels: with room for small, medium and large objects


def lvis_api(truth, results, iou_type, max_dets):
    """The LVIS API's evaluation, after ``run``."""
    from lvis import LVIS, LVISEval, LVISResults

    logging.disable(logging.WARNING)
    api = LVIS.__new__(LVIS)  # its constructor takes a path only
    api.logger, api.dataset = logging.getLogger("lvis"), copy.deepcopy(truth)
    api._create_index()
    results = copy.deepcopy(results)
    if iou_type == "segm":
        for result in results:  # as Detectron2 does: an area is the mask's then
            result.pop("bbox", None)
    with numpy_of_lvis_api():
        evaluation = LVISEval(api, LVISResults(api, results, max_dets=max_dets), iou_type)
        evaluation.run()
    logging.disable(logging.NOTSET)
    return evaluation


def assert_equal(truth, results, iou_type, max_dets=300):
    """Metrics and curves are the LVIS API's. Returns our metrics."""
    api = lvis_api(truth, results, iou_type, max_dets)
    before = copy.deepcopy((truth, results))
    curves = evaluate_lvis(truth, results, iou_type, max_dets)
    assert (truth, results) == before
    ours, expected = curves.metrics(), api.get_results()
    assert list(ours) == list(expected) and len(ours) == 13
    for name, value in expected.items():
        assert abs(ours[name] - value) <= 1e-12, (name, ours[name], value)
    np.testing.assert_allclose(curves.precision, api.eval["precision"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(curves.recall, api.eval["recall"], rtol=0, atol=1e-12)
    return ours


def rle(box, height, width):
    """Mask of a box (x, y, w, h) with a corner cut off, as RLE with str counts."""
    x, y, w, h = (round(v) for v in box)
    mask = np.zeros((height, width), dtype=np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    mask[y : y + h // 3, x : x + w // 3] = 0
    encoded = mask_utils.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def random_box(rng):
    """On a grid, so that IoUs and areas repeat."""
    w, h = rng.choice([8, 16, 32, 48, 96, 128], 2)
    return [float(v) for v in (*(rng.integers(0, SIDE - 128, 2) // 8 * 8), w, h)]


def moved(box, rng):
    x, y, w, h = np.add(box, rng.choice([-8, 0, 0, 0, 8], 4))
    return [float(v) for v in (max(x, 0), max(y, 0), max(w, 8), max(h, 8))]


def random_case(seed, num_images=12, num_categories=6, num_detections=60, masks=False):
    """Ground truth and detections that hold every special case, with many equal scores and IoUs."""
    rng = np.random.default_rng(seed)
    categories = [{"id": 3 * k + 2, "frequency": "rcf"[k % 3]} for k in range(num_categories)]
    ids = [c["id"] for c in categories]
    images = [
        {
            "id": int(image_id),
            "height": SIDE,
            "width": SIDE,
            "neg_category_ids": rng.choice(ids, 2, replace=False).tolist(),
            "not_exhaustive_category_ids": rng.choice(ids, rng.integers(0, 3)).tolist(),
        }
        for image_id in rng.permutation(np.arange(num_images) * 7 + 1)
    ]
    annotations = []
    for image in images[: -(num_images // 4) or None]:
        for _ in range(rng.integers(1, 9)):
            box = random_box(rng)
            annotation = {
                "id": len(annotations) + seed % 2,  # the LVIS API never finds an object with id 0
                "image_id": image["id"],
                "category_id": int(rng.choice(ids[:-1])),  # the last category has no object
                "bbox": box,
                "area": float(rng.choice([0.0, 0.7, 1.0], p=[0.05, 0.45, 0.5]) * box[2] * box[3]),
            }
            annotation |= {"ignore": int(rng.uniform() < 0.2)} if rng.uniform() < 0.5 else {}
            if masks:
                x, y, w, h = box
                polygon = [x, y, x + w, y, x + w, y + h, x, y + h - 3]
                annotation["segmentation"] = [polygon] if rng.uniform() < 0.7 else rle(box, SIDE, SIDE)
            annotations.append(annotation)
    rng.shuffle(annotations)
    results = []
    for _ in range(num_detections * num_images):
        source = annotations[rng.integers(len(annotations))]
        if rng.uniform() < 0.6:
            image_id, category_id = source["image_id"], source["category_id"]
        else:
            image_id = int(rng.choice([i["id"] for i in images]))
            category_id = int(rng.choice([*ids, 1000]))  # 1000 is no category
        box = moved(source["bbox"], rng)
        box[2] *= float(rng.uniform() > 0.05)  # some have no area
        result = {"image_id": image_id, "category_id": category_id, "bbox": box}
        result["score"] = float(rng.integers(0, 12) / 12)
        if masks:
            result["segmentation"] = rle(box, SIDE, SIDE)
        results.append(result)
    if num_images > 4:  # two images have no detections, one of them objects
        without = images[0]["id"], images[-1]["id"]
        results = [r for r in results if r["image_id"] not in without]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    return truth, results


def jittered(truth, rng, masks=False):
    """Detections made of the ground truth, a few per object, with equal scores among them."""
    size = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    results = []
    for a in truth["annotations"]:
        for _ in range(rng.integers(0, 4)):
            x, y, w, h = a["bbox"]
            shift = rng.normal(0, 0.1, 4) * [w, h, w, h]
            box = np.maximum(np.add(a["bbox"], shift), [0, 0, 1, 1]).tolist()
            result = {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": box}
            result["score"] = round(float(rng.uniform()), 2)
            if masks:
                result["segmentation"] = rle(box, *size[a["image_id"]])
            results.append(result)
    return results


def only_used_categories(truth, results):
    """The LVIS API's time is proportional to the categories."""
    used = {shape["category_id"] for shape in (*truth["annotations"], *results)}
    return truth | {"categories": [c for c in truth["categories"] if c["id"] in used]}


@pytest.fixture
def raters(shared_data):
    """One person's annotations, and another's as detections with masks and some equal scores."""
    truth = json.loads((shared_data / "evaluation" / "lvis_v1_rater1.json").read_text())
    file = shared_data / "evaluation" / "lvis_v1_rater2_as_detections.json"
    size = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    rng = np.random.default_rng(0)
    results = []
    for result in json.loads(file.read_text()):
        polygons = result.pop("segmentation_polygons")
        mask = mask_utils.merge(mask_utils.frPyObjects(polygons, *size[result["image_id"]]))
        results.append(result | {"segmentation": mask, "score": round(float(rng.uniform()), 2)})
    return only_used_categories(truth, results), results


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_two_raters(raters, iou_type):
    truth, results = raters
    metrics = assert_equal(truth, results, iou_type)
    assert 0.5 < metrics["AP"] < 0.8


def test_lvis_annotations_with_negatives(shared_data):
    file = shared_data / "evaluation" / "lvis_v0.5_val_100.json"
    truth = json.loads(file.read_text())
    results = jittered(truth, np.random.default_rng(0))
    metrics = assert_equal(truth, results, "bbox")
    assert 0.05 < metrics["AP"] < 1
    assert evaluate_lvis(str(file), results).metrics() == metrics
    limited = assert_equal(only_used_categories(truth, results), results, "bbox", max_dets=5)
    assert 0.01 < limited["AP"] < metrics["AP"]


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_mini_lvis(tmp_path, iou_type):
    spec = MiniLVISSpec(num_categories=12, num_train_images=12, num_val_images=16, image_size=64)
    root = generate(spec, tmp_path)
    truth = json.loads(next(root.rglob("*val*.json")).read_text())
    results = jittered(truth, np.random.default_rng(0), masks=iou_type == "segm")
    assert 0.02 < assert_equal(truth, results, iou_type)["AP"] < 1


@pytest.mark.parametrize("max_dets", [300, 20, -1])
@pytest.mark.parametrize("seed", range(8))
def test_random_boxes(seed, max_dets):
    metrics = assert_equal(*random_case(seed), "bbox", max_dets)
    assert 0 < metrics["AP"] < 1


@pytest.mark.parametrize("max_dets", [300, 10])
@pytest.mark.parametrize("seed", range(4))
def test_random_masks(seed, max_dets):
    """720 detections: more than pycocotools can measure in one call."""
    assert 0 < assert_equal(*random_case(seed, masks=True), "segm", max_dets)["AP"] < 1


@pytest.mark.parametrize("max_dets", [300, -1])
def test_more_than_300_detections_an_image(max_dets):
    truth, results = random_case(3, num_images=4, num_detections=700)
    assert max(np.unique([r["image_id"] for r in results], return_counts=True)[1]) > 600
    assert_equal(truth, results, "bbox", max_dets)


def test_the_limit_counts_detections_that_are_dropped_later():
    truth, _ = random_case(1, num_images=1)
    hit = next(a for a in truth["annotations"] if a["area"] and not a.get("ignore")) | {"score": 0.1}
    results = [*[hit | {"category_id": 1000, "score": 0.5}] * 300, hit]
    assert evaluate_lvis(truth, results, max_dets=300).metrics()["AR@300"] == 0
    assert evaluate_lvis(truth, results, max_dets=301).metrics()["AR@300"] > 0


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_one_image(iou_type):
    truth, results = random_case(1, num_images=1, masks=iou_type == "segm")
    assert_equal(truth, results, iou_type)


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_nothing_that_counts(iou_type):
    """Detections that are all dropped, and images without objects: precision 0, and -1."""
    truth, results = random_case(1, masks=True)
    unknown = [r | {"category_id": 1000} for r in results]
    metrics = assert_equal(truth, unknown, iou_type)
    assert metrics["AP"] == metrics["AR@300"] == 0
    metrics = assert_equal(truth | {"annotations": []}, results, iou_type)
    assert set(metrics.values()) == {-1}


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_no_detections_score_zero_where_there_are_objects(iou_type):
    """The LVIS API fails here."""
    truth, results = random_case(1, masks=True)
    metrics = evaluate_lvis(truth, [], iou_type).metrics()
    expected = evaluate_lvis(truth, results, iou_type).metrics()
    assert metrics == {name: 0 if value >= 0 else -1 for name, value in expected.items()}


def one_image(objects, boxes, first_id=1):
    """Ground truth and detections, with falling scores, of one category; boxes (x, y, w, h)."""
    image = {"id": 1, "neg_category_ids": [], "not_exhaustive_category_ids": []}
    shape = {"image_id": 1, "category_id": 1}
    annotations = [shape | {"id": first_id + i, "bbox": box, "area": box[2] * box[3]} for i, box in enumerate(objects)]
    results = [shape | {"bbox": box, "score": 1 / (i + 2)} for i, box in enumerate(boxes)]
    categories = [{"id": 1, "frequency": "r"}]
    return {"images": [image], "annotations": annotations, "categories": categories}, results


@pytest.mark.parametrize("second, hits", [([-4, 0, 20, 20], 2), ([8, 0, 20, 20], 1)])
def test_of_two_objects_with_equal_iou_the_last_is_taken(second, hits):
    """The first detection lies between two objects; the second is near one of them."""
    objects = [[0, 0, 20, 20], [4, 0, 20, 20]]
    metrics = assert_equal(*one_image(objects, [[2, 0, 20, 20], second]), "bbox")
    assert metrics["AP50"] == pytest.approx(1 if hits == 2 else 51 / 101)


def test_an_object_with_id_0_is_never_found():
    """So it is in the LVIS API, which marks what is matched by the id."""
    box = [0, 0, 20, 20]
    assert assert_equal(*one_image([box], [box]), "bbox")["AP"] == pytest.approx(1)
    assert assert_equal(*one_image([box], [box], first_id=0), "bbox")["AP"] == 0


def test_many_pairs_are_split(monkeypatch):
    """With a limit of 5 pairs at once, as for a whole dataset with its own limit."""
    truth, results = random_case(5)
    expected = evaluate_lvis(truth, results)
    monkeypatch.setattr("eql_d2.evaluation.lvis_metrics.PAIRS_AT_ONCE", 5)
    assert np.array_equal(evaluate_lvis(truth, results).precision, expected.precision)


def test_polygons_and_uncompressed_rle_of_detections():
    truth, results = random_case(2, num_images=6, num_detections=20, masks=True)
    as_rle, as_other = [], []
    for i, r in enumerate(r for r in results if r["bbox"][2] > 0):
        x, y, w, h = r["bbox"]
        polygons = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        mask = mask_utils.merge(mask_utils.frPyObjects(polygons, SIDE, SIDE))
        as_rle.append(r | {"segmentation": mask})
        flat = mask_utils.decode(mask).ravel(order="F")
        changes = np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1]))
        counts = np.diff(changes, prepend=0).tolist()
        uncompressed = {"size": [SIDE, SIDE], "counts": counts}
        as_other.append(r | {"segmentation": polygons if i % 2 else uncompressed})
    expected = assert_equal(truth, as_rle, "segm")
    assert evaluate_lvis(truth, as_other, "segm").metrics() == expected


def test_categories_are_read_out():
    truth, results = random_case(4)
    curves = evaluate_lvis(truth, results)
    ap, ar = curves.category_ap(), curves.category_ar()
    assert curves.category_ids.tolist() == sorted(c["id"] for c in truth["categories"])
    assert ap[-1] == ar[-1] == -1  # the last category has no object
    metrics = curves.metrics()
    assert ap[ap >= 0].mean() == pytest.approx(metrics["AP"], abs=1e-12)
    assert ap[2::3][ap[2::3] >= 0].mean() == pytest.approx(metrics["APf"], abs=1e-12)
    assert ar[ar >= 0].mean() == pytest.approx(metrics["AR@300"], abs=1e-12)


def test_a_category_does_not_depend_on_the_others():
    truth, results = random_case(4)
    expected = evaluate_lvis(truth, results, max_dets=-1)
    for k, category_id in enumerate(expected.category_ids):
        only = [r for r in results if r["category_id"] == category_id]
        curves = evaluate_lvis(truth, only, max_dets=-1)
        assert np.array_equal(curves.precision[:, :, k], expected.precision[:, :, k])


def test_prepared_inputs_give_the_same():
    truth, results = random_case(6)
    expected = evaluate_lvis(truth, results).metrics()
    prepared = GroundTruth.load(truth), Detections.from_results(results, "bbox")
    assert evaluate_lvis(*prepared).metrics() == expected


def test_errors_say_what_is_wrong():
    truth, results = random_case(0, num_images=3)
    with pytest.raises(ValueError, match="iou_type must be one of bbox, segm, got 'keypoints'"):
        evaluate_lvis(truth, results, "keypoints")
    with pytest.raises(ValueError, match="'segm' needs 'segmentation' in every detection"):
        evaluate_lvis(truth, results, "segm")
    with pytest.raises(ValueError, match="1 images that the ground truth has not, such as 12345"):
        evaluate_lvis(truth, [*results, results[0] | {"image_id": 12345}])
    images = [{k: v for k, v in i.items() if k != "neg_category_ids"} for i in truth["images"]]
    with pytest.raises(ValueError, match="without 'neg_category_ids': this is not an LVIS"):
        evaluate_lvis(truth | {"images": images}, results)
