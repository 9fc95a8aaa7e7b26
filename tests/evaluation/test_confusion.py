"""What objects are taken for, in scenes made by hand: category 1 is rare, 2 common, 3 frequent."""

import numpy as np

from eql_d2.evaluation.confusion import answers
from eql_d2.evaluation.lvis_metrics import Detections, GroundTruth

A, B = [0, 0, 20, 20], [100, 100, 20, 20]
NEAR_A, FAR = [2, 0, 20, 20], [60, 0, 20, 20]
GROUPS = {"r": np.array([True, False, False]), "c": np.array([False, True, False]), "f": np.array([False, False, True])}


def judge(objects, detections, max_dets=300, negatives=(1, 2, 3), federated=True, **image):
    """Answers for objects (category, box) of one image by detections (category, box, score)."""
    federated_fields = {"neg_category_ids": list(negatives), "not_exhaustive_category_ids": []}
    truth = GroundTruth.load(
        {
            "images": [{"id": 1, **federated_fields}],
            "annotations": [
                {"id": i + 1, "image_id": 1, "category_id": c, "bbox": box, "area": box[2] * box[3], **more}
                for i, (c, box, more) in enumerate((*o, {})[:3] for o in objects)
            ],
            "categories": [{"id": 1}, {"id": 2}, {"id": 3}],
        },
        federated,
    )
    results = [{"image_id": 1, "category_id": c, "bbox": box, "score": score} for c, box, score in detections]
    return answers(truth, Detections.from_results(results, "bbox"), max_dets)


def shares(*args, of=(True, True, True), **kwargs):
    return judge(*args, **kwargs).shares(np.array(of), GROUPS)


def test_right_wrong_and_missed():
    assert shares([(1, A)], [(1, NEAR_A, 0.9), (3, A, 0.8)])["right"] == 1
    wrong = shares([(1, A)], [(1, A, 0.8), (3, NEAR_A, 0.9)])  # the right one does not score highest
    assert (wrong["wrong"], wrong["wrong_by_group"]) == (1, {"r": 0, "c": 0, "f": 1})
    assert shares([(1, A)], [(3, FAR, 0.9)])["missed"] == 1
    assert shares([(1, A)], [])["missed"] == 1


def test_shares_of_several_objects_add_up():
    result = shares(
        [(1, A), (1, B), (2, FAR), (3, [200, 0, 9, 9])], [(1, A, 0.5), (3, B, 0.5), (3, FAR, 0.4), (2, FAR, 0.3)]
    )
    assert result["objects"] == 4
    assert (result["right"], result["wrong"], result["missed"]) == (0.25, 0.5, 0.25)
    assert result["wrong_by_group"] == {"r": 0, "c": 0, "f": 0.5}


def test_only_the_members_count():
    objects, detections = [(1, A), (3, B)], [(3, A, 0.9), (3, B, 0.8)]
    rare = shares(objects, detections, of=(True, False, False))
    frequent = shares(objects, detections, of=(False, False, True))
    assert (rare["objects"], rare["right"], rare["wrong"]) == (1, 0, 1)
    assert (frequent["objects"], frequent["right"], frequent["wrong"]) == (1, 1, 0)
    none = shares(objects, detections, of=(False, True, False))
    assert none["objects"] == 0 and none["right"] is None and none["wrong_by_group"]["f"] is None


def test_a_detection_of_a_neighbour_is_no_wrong_answer():
    """A frequent object and a rare one overlap; the detection of the frequent one is about that one."""
    objects = [(1, A), (3, NEAR_A)]
    both = judge(objects, [(3, NEAR_A, 0.9), (1, A, 0.3)])
    assert both.predicted.tolist() == both.category.tolist() == [0, 2]
    rare = shares(objects, [(3, NEAR_A, 0.9)], of=(True, False, False))
    assert (rare["wrong"], rare["missed"]) == (0, 1)


def test_iou_of_one_half_is_enough_and_less_is_not():
    assert shares([(1, A)], [(1, [0, 0, 20, 10], 0.9)])["right"] == 1
    assert shares([(1, A)], [(1, [0, 0, 20, 9.9], 0.9)])["missed"] == 1


def test_of_equal_scores_the_first_answers():
    assert shares([(1, A)], [(1, A, 0.5), (3, A, 0.5)])["right"] == 1
    assert shares([(1, A)], [(3, A, 0.5), (1, A, 0.5)])["wrong"] == 1


def test_the_limit_per_image():
    detections = [(3, FAR, 0.9), (3, FAR, 0.8), (1, A, 0.1)]
    assert shares([(1, A)], detections, max_dets=3)["right"] == 1
    assert shares([(1, A)], detections, max_dets=2)["missed"] == 1
    assert shares([(1, A)], detections, max_dets=-1)["right"] == 1


def test_a_category_that_nobody_looked_for_may_be_right():
    wrong = [(3, A, 0.9)]
    assert shares([(1, A)], wrong, negatives=[3])["unverified"] == 0
    assert shares([(1, A)], wrong, negatives=[2])["unverified"] == 1
    assert shares([(1, A), (3, B)], wrong, negatives=[])["unverified"] == 0  # it is present, elsewhere in the image
    assert shares([(1, A)], wrong, federated=False)["unverified"] == 0


def test_ignored_objects_and_crowds_are_not_judged():
    assert len(judge([(1, A, {"ignore": 1}), (2, B)], []).category) == 1
    crowd = judge([(1, [0, 0, 200, 200], {"iscrowd": 1}), (2, A)], [(1, NEAR_A, 0.9)], federated=False)
    # A detection that lies in a crowd of its category is about the crowd.
    assert crowd.category.tolist() == [1] and crowd.predicted.tolist() == [-1]


def test_pairs_by_falling_count():
    objects = [(1, A), (1, B), (2, FAR)]
    result = judge(objects, [(3, A, 0.9), (3, B, 0.9), (1, FAR, 0.9), (2, A, 0.1)])
    assert result.pairs(9) == [(0, 2, 2), (1, 0, 1)] and result.pairs(1) == [(0, 2, 2)]


def test_against_a_loop(cases):
    """Random scenes, by the definition."""
    truth, results = cases.random_case(4, num_detections=30)
    loaded = GroundTruth.load(truth)
    result = answers(loaded, Detections.from_results(results, "bbox"), 20)
    ids, expected = loaded.category_ids.tolist(), {}

    def iou(a, b):
        w, h = (min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
        common = max(w, 0) * max(h, 0)
        return common / (a[2] * a[3] + b[2] * b[3] - common)

    for image in truth["images"]:
        objects = [a for a in truth["annotations"] if a["image_id"] == image["id"] and a["area"] > 0]
        detections = [r for r in results if r["image_id"] == image["id"]]
        detections = sorted(detections, key=lambda r: -r["score"])[:20]
        for a in objects:
            answer = None
            for r in detections:
                if answer is None and r["category_id"] in ids and iou(r["bbox"], a["bbox"]) >= 0.5:
                    mine = [o for o in objects if o["category_id"] == r["category_id"]]
                    own = [o for o in mine if iou(r["bbox"], o["bbox"]) >= 0.5]
                    if not own or r["category_id"] == a["category_id"]:
                        answer = r["category_id"]
            if not a.get("ignore"):
                key = (ids.index(a["category_id"]), -1 if answer is None else ids.index(answer))
                expected[key] = expected.get(key, 0) + 1
    pairs, count = np.unique(np.stack([result.category, result.predicted], axis=1), axis=0, return_counts=True)
    assert {tuple(p): c for p, c in zip(pairs.tolist(), count.tolist())} == expected
    assert len({a != b and b >= 0 for a, b in expected}) == 2 and any(b == -1 for _, b in expected)
