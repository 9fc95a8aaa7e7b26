"""Each mistake is named where it was made, and nothing where none was."""

import numpy as np
import pytest

from eql_d2.evaluation.confusion import answers
from eql_d2.evaluation.lvis_metrics import Detections, GroundTruth
from eql_d2.evaluation.mistakes import hardly_found, indices_for_ids, mistakes
from eql_d2.evaluation.packed_masks import PackedMasks

N = 200


@pytest.fixture
def truth():
    rng = np.random.default_rng(0)
    box = np.concatenate([rng.uniform(0, 300, (N, 2)), rng.uniform(20, 300, (N, 2))], axis=1).round()
    images = [{"id": i + 1, "height": 600, "width": 600} for i in range(20)]
    annotations = [
        {"id": i + 1, "image_id": i % 20 + 1, "category_id": i % 9 + 1, "bbox": b.tolist(), "area": b[2] * b[3]}
        for i, b in enumerate(box)
    ]
    categories = [{"id": k + 1} for k in range(10) if k != 4]  # with a gap, as COCO's
    annotations = [a for a in annotations if a["category_id"] != 5]
    dataset = {"images": images, "annotations": annotations, "categories": categories}
    return GroundTruth.load(dataset, federated=False)


def right(truth, **changes):
    K = len(truth.category_ids)
    fields = {
        "image_id": truth.image_ids[truth.group // K],
        "category_id": truth.category_ids[truth.category],
        "score": np.linspace(0, 1, len(truth.group)),
        "box": truth.box,
    }
    return Detections(**{**fields, **changes})


def test_nothing_is_wrong(truth):
    assert mistakes(truth, right(truth)) == []
    assert hardly_found(truth, right(truth), answers(truth, right(truth), 100), 100) is None


def test_no_detection(truth):
    (line,) = mistakes(truth, right(truth).select(np.zeros(len(truth.group), dtype=bool)))
    assert "no detection" in line


@pytest.mark.parametrize("first", [0, 1])
def test_contiguous_ids(truth, first):
    (line,) = mistakes(truth, right(truth, category_id=truth.category + first))
    assert (
        f"look like a model's indices, from {first} on" in line
        and ("sorted(ids)[index - 1]" if first else "sorted(ids)[index]") in line
    )


def test_one_unknown_id_is_no_convention(truth):
    category_id = truth.category_ids[truth.category].copy()
    category_id[0] = 1000
    assert mistakes(truth, right(truth, category_id=category_id)) == []


def test_corners(truth):
    corners = np.concatenate([truth.box[:, :2], truth.box[:, :2] + truth.box[:, 2:]], axis=1)
    (line,) = mistakes(truth, right(truth, box=corners))
    assert "look like x0, y0, x1, y1" in line


def test_normalised(truth):
    (line,) = mistakes(truth, right(truth, box=truth.box / 600))
    assert "look normalised" in line


@pytest.mark.parametrize("change, name", [(lambda s: 100 * s, "percent"), (lambda s: 8 * s - 6, "logits")])
def test_scores(truth, change, name):
    (line,) = mistakes(truth, right(truth, score=change(np.linspace(0, 1, len(truth.group)))))
    assert name in line and "AP is not touched" in line


def judged(truth, category_id):
    detections = right(truth, category_id=category_id)
    known = np.isin(category_id, truth.category_ids)
    return indices_for_ids(truth.category_ids, answers(truth, detections.select(known), -1))


def test_indices_that_are_all_ids_are_known_by_what_they_name(truth):
    """The first category has no detection, so that no index is 0, which is no id."""
    index = truth.category
    line = judged(truth, np.where(index == 0, 1000, index))
    assert "a model's indices, from 0 on" in line and "sorted(ids)[index]" in line


def test_a_bad_detector_is_none(truth):
    assert judged(truth, truth.category_ids[truth.category]) is None
    assert judged(truth, np.random.default_rng(0).choice(truth.category_ids, len(truth.group))) is None
    assert judged(truth, np.full(len(truth.group), truth.category_ids[0])) is None


def test_masks_of_another_size(truth):
    masks = [{"size": [600, 600], "counts": "4"} for _ in truth.group]
    assert mistakes(truth, right(truth, segmentation=PackedMasks.of(masks))) == []
    masks[7]["size"] = [300, 300]
    (line,) = mistakes(truth, right(truth, segmentation=PackedMasks.of(masks)))
    assert f"1 of {len(masks)} masks" in line and "one of 300 x 300 of image" in line and "of 600 x 600" in line


def test_a_part_of_the_images(truth):
    detections = right(truth)
    (line,) = mistakes(truth, detections.select(detections.image_id <= 10))
    assert line.startswith("10 of 20 images with objects have no detection") and "--image-ids" in line
    assert mistakes(truth, detections.select(detections.image_id <= 17)) == []


def test_detections_that_are_there_twice(truth):
    detections = right(truth)
    half = [np.concatenate([v, v]) for v in (detections.image_id, detections.category_id, detections.score)]
    twice = Detections(*half, np.concatenate([truth.box, truth.box]))
    n = len(truth.group)
    (line,) = mistakes(truth, twice)
    assert line.startswith(f"{n} of {2 * n} detections are there already")
    twice.box[n:, 3] += 0.01
    assert mistakes(truth, twice) == []


def test_scores_that_are_all_the_same(truth):
    (line,) = mistakes(truth, right(truth, score=np.ones(len(truth.group))))
    assert line.startswith("all scores are 1:")


def test_boxes_without_extent(truth):
    (line,) = mistakes(truth, right(truth, box=truth.box * [1, 1, -1, 1]))
    assert line.startswith(f"{len(truth.box)} of {len(truth.box)} boxes have a width or height below 0")


@pytest.mark.parametrize(
    "wrong, words",
    [
        (lambda box: np.concatenate([box[:, :2] + box[:, 2:] / 2, box[:, 2:]], axis=1), "centre x, centre y"),
        (lambda box: box[:, [1, 0, 3, 2]], "y, x, height, width"),
        (lambda box: box * 0.25 + 1, "are the boxes in pixels of the images"),
    ],
)
def test_boxes_that_find_hardly_any_object(truth, wrong, words):
    detections = right(truth, box=wrong(truth.box))
    assert words in hardly_found(truth, detections, answers(truth, detections, -1), -1)


def test_categories_of_another_version(truth):
    order = np.roll(np.arange(len(truth.category_ids)), 4)
    detections = right(truth, category_id=truth.category_ids[order[truth.category]])
    assert "of its version" in hardly_found(truth, detections, answers(truth, detections, -1), -1)
