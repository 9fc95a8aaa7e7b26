"""Boundary IoU against the definition by loops, and boundary AP against the LVIS API with that IoU."""

import copy

import numpy as np
import pycocotools.mask as mask_utils
import pytest

from eql_d2.evaluation.boundary import Boundary, by_boundary, eroded
from eql_d2.evaluation.lvis_metrics import GroundTruth, match_lvis


def boundary_by_loop(mask, distance):
    """Pixels of the mask with a pixel that is not of it, or outside the image, within the distance in x and y."""
    height, width = mask.shape
    result = np.zeros_like(mask)
    for y, x in zip(*np.nonzero(mask)):
        rows = slice(max(y - distance, 0), y + distance + 1)
        columns = slice(max(x - distance, 0), x + distance + 1)
        inside = y >= distance and x >= distance and y + distance < height and x + distance < width
        result[y, x] = not (inside and mask[rows, columns].all())
    return result


def distance_of(mask):
    return max(1, round(0.02 * np.hypot(*mask.shape)))


def iou_by_loop(a, b):
    a, b = (boundary_by_loop(m, distance_of(m)) for m in (a, b))
    return (a & b).sum() / max((a | b).sum(), 1)


def rle(mask):
    return mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))


def random_mask(rng, height=70, width=90):
    """A few rectangles, some cut by the image's border, with holes."""
    mask = np.zeros((height, width), dtype=bool)
    for value in (1, 1, 0):
        y, x = rng.integers(-20, height), rng.integers(-20, width)
        h, w = rng.integers(1, 60, 2)
        mask[max(y, 0) : y + h, max(x, 0) : x + w] = value
    return mask


@pytest.mark.parametrize("seed", range(20))
def test_boundary_iou_is_the_definition(seed):
    rng = np.random.default_rng(seed)
    a, b = random_mask(rng), random_mask(rng)
    ours = Boundary.of(rle(a)).iou(Boundary.of(rle(b)))
    assert ours == pytest.approx(iou_by_loop(a, b), abs=1e-12)
    assert Boundary.of(rle(a)).size == boundary_by_loop(a, distance_of(a)).sum()


@pytest.mark.parametrize("distance", [1, 2, 5])
def test_erosion(distance):
    mask = random_mask(np.random.default_rng(distance))
    expected = mask & ~boundary_by_loop(mask, distance)
    assert np.array_equal(eroded(mask, distance), expected)


def test_the_distance_is_rounded_and_at_least_one_pixel():
    for side, distance in ((10, 1), (100, 3), (480, 14)):  # 0.02 x side x sqrt(2)
        mask = np.ones((side, side), dtype=bool)
        assert Boundary.of(rle(mask)).size == side**2 - (side - 2 * distance) ** 2


def test_equal_masks_and_masks_apart_and_empty_ones():
    mask = np.zeros((50, 60), dtype=bool)
    mask[5:20, 10:30] = True
    boundary, other = Boundary.of(rle(mask)), Boundary.of(rle(mask[::-1, ::-1]))
    assert boundary.iou(boundary) == 1 and boundary.iou(other) == 0
    assert Boundary.of(rle(np.zeros((50, 60), dtype=bool))).iou(boundary) == 0


def test_a_large_object_is_judged_by_its_outline_and_a_small_one_by_all_of_it():
    def pair(side, shift):
        masks = np.zeros((2, 400, 400), dtype=bool)
        masks[0, 50 : 50 + side, 50 : 50 + side] = True
        masks[1, 50 + shift : 50 + side + shift, 50 : 50 + side] = True
        mask_iou = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
        return Boundary.of(rle(masks[0])).iou(Boundary.of(rle(masks[1]))), mask_iou

    outline, whole = pair(side=250, shift=6)
    assert outline < 0.7 < 0.9 < whole
    outline, whole = pair(side=12, shift=1)  # within 11 px of its outline is all of it
    assert outline == pytest.approx(whole)


@pytest.mark.parametrize("seed", range(3))
def test_boundary_ap_is_the_lvis_apis_with_the_lower_of_both_ious(cases, seed, monkeypatch):
    from lvis import LVISEval

    def iou(self, image_id, category_id):
        gt, dt = self._get_gt_dt(image_id, category_id)
        if not gt or not dt:
            return []
        dt = [dt[i] for i in np.argsort([-d["score"] for d in dt], kind="mergesort")]
        masks = [[mask_utils.decode(x["segmentation"]).astype(bool) for x in xs] for xs in (dt, gt)]
        mask_iou = mask_utils.iou(*[[x["segmentation"] for x in xs] for xs in (dt, gt)], [0] * len(gt))
        close = mask_iou >= 0.5  # the loop is slow, and elsewhere the minimum is below all thresholds
        boundary = [[iou_by_loop(d, g) if c else 0 for g, c in zip(masks[1], row)] for d, row in zip(masks[0], close)]
        return np.minimum(mask_iou, boundary)

    truth, results = cases.random_case(seed, num_images=3, num_categories=3, num_detections=25, masks=True)
    ours = by_boundary(match_lvis(copy.deepcopy(truth), results, "segm")).curves
    standard = match_lvis(truth, results, "segm").curves
    monkeypatch.setattr(LVISEval, "compute_iou", iou)
    api = cases.lvis_api(truth, results, "segm", 300)
    np.testing.assert_allclose(ours.precision, api.eval["precision"], rtol=0, atol=1e-12)
    assert 0 < ours.metrics()["AP"] < standard.metrics()["AP"]


def test_without_masks_that_overlap_nothing_is_looked_at(cases):
    truth, _ = cases.random_case(0, masks=True)
    assert by_boundary(match_lvis(truth, [], "segm")).curves.metrics()["AP"] == 0


def test_a_detection_inside_a_crowd_is_ignored_as_by_mask_iou():
    """As in the authors' code: the outline of a crowd region means nothing."""

    def square(low, high):
        mask = np.zeros((100, 100), dtype=bool)
        mask[low:high, low:high] = True
        return {"image_id": 1, "category_id": 1, "segmentation": rle(mask), "area": (high - low) ** 2}

    crowd, single = square(0, 60), square(70, 90)
    truth = {
        "images": [{"id": 1, "height": 100, "width": 100}],
        "annotations": [
            x | {"id": i + 1, "bbox": [0, 0, 9, 9], "iscrowd": 1 - i} for i, x in enumerate((crowd, single))
        ],
        "categories": [{"id": 1}],
    }
    results = [square(20, 40) | {"score": 0.9}, square(70, 90) | {"score": 0.5}]
    matching = match_lvis(GroundTruth.load(truth, federated=False), results, "segm", 100)
    assert by_boundary(matching).curves.ap() == matching.curves.ap() == pytest.approx(1)
