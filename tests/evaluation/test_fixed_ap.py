"""Fixed AP against the LVIS API on detections that a loop has cut, and its collector against that loop."""

import numpy as np
import pytest

from eql_d2.evaluation import fixed_ap
from eql_d2.evaluation.fixed_ap import BestOfEachCategory, best_of_all
from eql_d2.evaluation.lvis_metrics import evaluate_lvis
from eql_d2.evaluation.predictions import ImagePredictions, as_detections


def best_by_loop(results, limit):
    """The definition: of each category the highest scores, of equal ones the first."""
    best = []
    for category in {r["category_id"] for r in results}:
        mine = [r for r in results if r["category_id"] == category]
        best += sorted(mine, key=lambda r: -r["score"])[:limit]
    return best


def as_images(results):
    """Image by image in the order of their first detection, and the results in that order."""
    images = {}
    for r in results:
        images.setdefault(r["image_id"], []).append(r)
    packed = [
        ImagePredictions(
            image_id=image_id,
            category_id=np.array([r["category_id"] for r in of]),
            bbox=np.array([r["bbox"] for r in of]),
            score=np.array([r["score"] for r in of]),
            mask_size=None,
            mask_counts=[str(r["place"]) for r in of] if "place" in of[0] else None,
        )
        for image_id, of in images.items()
    ]
    return packed, [r for of in images.values() for r in of]


def as_set(images):
    return {
        (p.image_id, *row) for p in images for row in zip(p.category_id.tolist(), map(tuple, p.bbox.tolist()), p.score)
    }


def collect(images, limit, prune_above=10**6):
    collector = BestOfEachCategory(limit)
    collector._prune_at = prune_above
    for image in images:
        collector.add(image)
    return collector.images()


@pytest.mark.parametrize("limit", [1, 7, 40, 10_000])
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_the_lvis_api_on_what_a_loop_cut(cases, seed, limit):
    truth, results = cases.random_case(seed)
    images, results = as_images(results)
    detections = as_detections(collect(images, limit))
    ours = evaluate_lvis(truth, detections, max_dets=-1).metrics()
    api = cases.lvis_api(truth, best_by_loop(results, limit), "bbox", -1).get_results()
    for name, value in api.items():
        assert ours[name] == pytest.approx(value, abs=1e-12), name
    if limit > 1:
        assert ours["AP"] > 0


def test_what_a_limit_per_image_loses_counts():
    """An image full of sure but wrong detections costs its rare object under a limit per image; not under fixed AP."""
    box = {"image_id": 1, "bbox": [0, 0, 20, 20]}
    truth = {
        "images": [{"id": 1, "neg_category_ids": [2], "not_exhaustive_category_ids": []}],
        "annotations": [box | {"id": 1, "category_id": 1, "area": 400}],
        "categories": [{"id": 1}, {"id": 2}],
    }
    results = [box | {"category_id": 2, "score": 0.9}] * 300 + [box | {"category_id": 1, "score": 0.1}]
    images, _ = as_images(results)
    assert evaluate_lvis(truth, results, max_dets=300).metrics()["AP"] == 0
    assert evaluate_lvis(truth, as_detections(collect(images, 10_000)), max_dets=-1).metrics()["AP"] == pytest.approx(1)


@pytest.mark.parametrize("prune_above", [0, 50, 10**6])
def test_streaming_keeps_what_the_whole_would(cases, monkeypatch, prune_above):
    """However often it prunes; scores have many ties, and each detection keeps its own mask."""
    monkeypatch.setattr(fixed_ap, "PRUNE_ABOVE", prune_above)
    _, results = cases.random_case(0)
    results = [r | {"place": i} for i, r in enumerate(results)]
    images, results = as_images(results)
    kept = collect(images, 9, prune_above)
    expected = best_by_loop(results, 9)
    assert sorted(int(m) for p in kept for m in p.mask_counts) == sorted(r["place"] for r in expected)
    by_place = {r["place"]: r for r in results}
    for p in kept:
        for mask, score, box in zip(p.mask_counts, p.score, p.bbox):
            assert (by_place[int(mask)]["score"], by_place[int(mask)]["bbox"]) == (score, box.tolist())


def test_parts_of_several_processes_are_what_one_would_keep(cases):
    _, results = cases.random_case(1)
    images, _ = as_images(results)
    parts = [collect(images[:5], 9), collect(images[5:], 9), []]
    assert as_set(best_of_all(parts, 9)) == as_set(collect(images, 9))


def test_memory_stays_bounded(monkeypatch):
    """Ten times what is kept comes in; never more than twice the limit, and one image, is held."""
    monkeypatch.setattr(fixed_ap, "PRUNE_ABOVE", 100)
    collector = BestOfEachCategory(50)
    collector._prune_at = 100
    rng = np.random.default_rng(0)
    for image_id in range(100):
        category, boxes, score = np.zeros(20, dtype=np.int64), np.zeros((20, 4)), rng.uniform(size=20)
        collector.add(ImagePredictions(image_id, category, boxes, score, None, None))
        assert sum(len(p.score) for p in collector._images) <= 120
    assert sum(len(p.score) for p in collector.images()) == 50


def test_nothing_predicted():
    assert BestOfEachCategory().images() == []
    empty = ImagePredictions(1, np.zeros(0, dtype=np.int64), np.zeros((0, 4)), np.zeros(0), None, None)
    assert len(collect([empty], 5)[0].score) == 0
