"""Resampled AP against the LVIS API's, and our own curves', on datasets in which images really are there twice."""

import copy

import numpy as np
import pytest

from eql_d2.evaluation.intervals import WeightedAP, bootstrap, group_means, interval
from eql_d2.evaluation.lvis_metrics import evaluate_lvis, match_lvis


def copied(truth, results, weights):
    """The dataset with each image as often as its weight says; copies of an image have neighbouring ids."""
    images, annotations, detections = [], [], []
    ids = sorted(image["id"] for image in truth["images"])
    weight = dict(zip(ids, weights.tolist(), strict=True))
    for image in sorted(truth["images"], key=lambda i: i["id"]):
        for copy_number in range(weight[image["id"]]):
            image_id = image["id"] * 100 + copy_number
            images.append(image | {"id": image_id})
            for a in truth["annotations"]:
                if a["image_id"] == image["id"]:
                    annotations.append(a | {"image_id": image_id, "id": len(annotations) + 1})
            detections += [r | {"image_id": image_id} for r in results if r["image_id"] == image["id"]]
    return truth | {"images": images, "annotations": annotations}, detections


def different_scores(results):
    """Those of one image are different, those of two images need not be."""
    place: dict = {}
    for result in results:
        place[result["image_id"]] = place.get(result["image_id"], 0) + 1
        result["score"] += place[result["image_id"]] / 1000
    return results


def case(cases, seed, **kwargs):
    truth, results = cases.random_case(seed, num_images=8, num_detections=25, **kwargs)
    for annotation in truth["annotations"]:
        annotation["id"] += 1
    return truth, different_scores(results)


@pytest.mark.parametrize("seed", range(4))
def test_equals_the_lvis_api_on_copies(cases, seed):
    truth, results = case(cases, seed)
    detector = WeightedAP(match_lvis(truth, results))
    rng = np.random.default_rng(seed)
    for _ in range(3):
        weights = np.bincount(rng.integers(0, 8, 8), minlength=8)
        api = cases.lvis_api(*copied(truth, results, weights), "bbox", 300)
        expected = api.eval["precision"][..., 0].mean(axis=(0, 1))
        np.testing.assert_allclose(detector(weights), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_weights_of_one_give_the_ap(cases, seed):
    truth, results = cases.random_case(seed)  # with equal scores
    matching = match_lvis(truth, results)
    ap = WeightedAP(matching)(np.ones(12, dtype=int))
    np.testing.assert_allclose(ap, matching.curves.category_ap(), rtol=0, atol=1e-9)


def test_a_weight_of_zero_is_an_image_less(cases):
    truth, results = case(cases, 5)
    gone = min(image["id"] for image in truth["images"])
    less = copy.deepcopy(truth)
    less["images"] = [i for i in less["images"] if i["id"] != gone]
    expected = evaluate_lvis(less, [r for r in results if r["image_id"] != gone]).category_ap()
    weights = np.array([0] + [1] * 7)
    np.testing.assert_allclose(WeightedAP(match_lvis(truth, results))(weights), expected, rtol=0, atol=1e-9)


def test_masks(cases):
    truth, results = case(cases, 1, masks=True)
    detector, weights = WeightedAP(match_lvis(truth, results, "segm")), np.array([2, 0, 1, 3, 0, 1, 1, 0])
    expected = evaluate_lvis(*copied(truth, results, weights), "segm").category_ap()
    np.testing.assert_allclose(detector(weights), expected, rtol=0, atol=1e-9)


def test_a_detector_does_not_differ_from_itself(cases):
    truth, results = case(cases, 2)
    detector = WeightedAP(match_lvis(truth, results))
    groups = {"all": np.ones(6, dtype=bool)}
    drawn = bootstrap([detector, detector], groups, 20)["all"]
    assert np.array_equal(drawn[:, 0], drawn[:, 1]) and drawn[:, 0].std() > 0
    assert np.array_equal(drawn, bootstrap([detector, detector], groups, 20)["all"])
    assert not np.array_equal(drawn, bootstrap([detector, detector], groups, 20, seed=1)["all"])


def test_spread_is_that_of_a_mean(cases):
    """One category, one object and one perfect or missing hit an image: AP's drawings spread as a share's do."""
    box, n = [0, 0, 20, 20], 400
    images = [{"id": i + 1, "neg_category_ids": [], "not_exhaustive_category_ids": []} for i in range(n)]
    shape = [{"image_id": i + 1, "category_id": 1, "bbox": box} for i in range(n)]
    truth = {
        "images": images,
        "annotations": [s | {"id": i + 1, "area": 400} for i, s in enumerate(shape)],
        "categories": [{"id": 1, "frequency": "r"}],
    }
    results = [s | {"score": 0.5} for s in shape[: n // 4]]  # no false positive, so AP is about recall
    drawn = bootstrap([WeightedAP(match_lvis(truth, results))], {"r": np.array([True])}, 400)["r"][:, 0]
    assert drawn.mean() == pytest.approx(0.25, abs=0.01)
    assert drawn.std() == pytest.approx(np.sqrt(0.25 * 0.75 / n), rel=0.15)


def test_means_and_intervals():
    means = group_means(np.array([0.5, -1.0, 1.0]), {"all": np.array([True] * 3), "r": np.array([False, True, False])})
    assert means["all"] == 0.75 and np.isnan(means["r"])
    assert interval(50, np.append(np.arange(101), np.nan)) == pytest.approx((2.5, 97.5))
    assert interval(10, np.arange(101)) == pytest.approx((-37.5, 57.5))
    assert interval(10, np.array([np.nan])) is None
