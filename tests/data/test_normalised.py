"""Files as export tools write them: what is made of them, and that a perfect detector has 100 on them."""

import json

import numpy as np
import pycocotools.mask
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from hypothesis import given
from hypothesis import strategies as st

from eql_d2.data.annotations import read_annotations, read_truth
from eql_d2.data.clipping import clip_polygon
from eql_d2.data.normalised import normalise
from eql_d2.data.registration import load_dataset, register_dataset
from eql_d2.errors import InputError
from eql_d2.evaluation.coco_evaluation import LongTailCOCOEvaluator
from eql_d2.evaluation.lvis_evaluation import LongTailLVISEvaluator
from eql_d2.evaluation.tail_analysis import TailAnalysis
from tests.annotation_cases import CASES, FAR, HEIGHT, OUTSIDE, POINT, WIDTH, each, valid

SIZE = (HEIGHT, WIDTH)
AS_VALID = ("url empty", "url zero", "ids from zero", "text annotation ids", "spelt image ids", "spelt category ids")
AS_VALID += ("whole floats", "null crowd", "spelt references", "spelt sizes")
FAR_INSIDE = {"bbox": [40, 0, 24, 48], "area": 24 * 48}


@pytest.fixture(params=[False, True], ids=["coco", "lvis"])
def lvis(request):
    return request.param


@pytest.mark.parametrize("name", AS_VALID)
def test_it_reads_as_the_valid_file_does(name, lvis, tmp_path):
    data = valid(lvis)
    CASES[name].change(data)
    path = tmp_path / "file.json"
    path.write_text(json.dumps(data))
    read = read_annotations(path)
    expected = valid(lvis)
    assert read == expected and read.notes == ()


def test_what_reaches_far_out_is_cut(lvis, tmp_path):
    data, expected = valid(lvis), valid(lvis)
    data["annotations"][0].update(FAR)
    expected["annotations"][0].update(FAR_INSIDE)
    path = tmp_path / "file.json"
    path.write_text(json.dumps(data))
    read = read_annotations(path)
    (polygon,) = read["annotations"][0].pop("segmentation")
    del expected["annotations"][0]["segmentation"]
    assert {*zip(polygon[::2], polygon[1::2], strict=True)} == {(40, 0), (64, 0), (64, 48), (40, 48)}
    assert read == expected


def test_names_that_are_numbers_and_frequencies_that_are_not_lvis_s(tmp_path):
    data = valid(lvis=False)
    each("categories", name=lambda c: c["id"], frequency=lambda c: 10 * c["id"])(data)
    path = tmp_path / "file.json"
    path.write_text(json.dumps({**data, "annotations": None}))
    read = read_annotations(path)
    assert read["categories"] == [{"id": i, "name": str(i)} for i in (1, 2, 3)] and read["annotations"] == []


@pytest.mark.parametrize(
    "change, said",
    [
        ({"bbox": None}, "`bbox` of four finite numbers"),
        ({"bbox": [26, 6, -22, 30]}, "`bbox` of four finite numbers"),
        ({"category_id": [1]}, r"the category id \[1\]"),
        ({"image_id": "camera 1"}, "whole number as its `image_id`"),
        ({"area": "large"}, "as its `area`"),
    ],
)
def test_the_truth_of_an_evaluation_may_lack_names_but_no_object_its_place(change, said, lvis, tmp_path):
    data = valid(lvis)
    del data["categories"][0]["name"]
    path = tmp_path / "file.json"
    path.write_text(json.dumps(data))
    assert len(read_truth(path)["annotations"]) == 6
    data["annotations"][1].update(change)
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=f"file.json: annotation 2 .*{said}"):
        read_truth(path)


def test_why_objects_are_left_out_is_counted(lvis, tmp_path):
    data = valid(lvis)
    for place, change in enumerate((POINT, OUTSIDE, {"image_id": 77}, {"bbox": [1, 1, 0, 3]}, {"bbox": [1, 1, 3, 0]})):
        data["annotations"][place].update(change)
    path = tmp_path / "file.json"
    path.write_text(json.dumps(data))
    (note,) = read_annotations(path).notes
    expected = (
        "left out 5 of 6 annotations (id 1 first)",
        "1 without a polygon of three corners",
        "1 outside of their image",
        "1 of images that are not listed",
        "2 with a box without area",
    )
    assert all(part in note for part in expected), note


@pytest.mark.parametrize("name", [*AS_VALID, "far", "no crowd key"])
@pytest.mark.parametrize("lvis, backend", [(False, "eql_d2"), (True, "eql_d2"), (True, "lvis")])
def test_a_perfect_detector_has_100(name, backend, lvis, tmp_path):
    data = valid(lvis)
    CASES[name].change(data)
    path = tmp_path / "file.json"
    path.write_text(json.dumps(data))
    for i in range(3):
        (tmp_path / f"{i}.png").touch()
    dataset = f"normalised_{name}_{backend}_{lvis}".replace(" ", "_")
    register_dataset(dataset, str(path), str(tmp_path))
    try:
        if lvis:
            evaluator = LongTailLVISEvaluator(dataset, backend=backend, distributed=False)
        else:
            evaluator = LongTailCOCOEvaluator(
                dataset, TailAnalysis(dataset), distributed=False, use_fast_impl=False, tasks=("bbox", "segm")
            )
        evaluator.reset()
        for image in DatasetCatalog.get(dataset):
            evaluator.process([image], [{"instances": as_predictions(image)}])
        results = evaluator.evaluate()
    finally:
        DatasetCatalog.remove(dataset)
        MetadataCatalog.remove(dataset)
    assert {task: round(scores["AP"], 6) for task, scores in results.items()} == {"bbox": 100.0, "segm": 100.0}


def as_predictions(image):
    instances, objects = Instances(SIZE), image["annotations"]
    boxes = torch.tensor([o["bbox"] for o in objects], dtype=torch.float64)
    instances.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1))
    instances.scores = torch.ones(len(objects))
    instances.pred_classes = torch.tensor([o["category_id"] for o in objects])
    masks = [pycocotools.mask.decode(pycocotools.mask.frPyObjects(o["segmentation"], *SIZE))[..., 0] for o in objects]
    instances.pred_masks = torch.from_numpy(np.stack(masks)).bool()
    return instances


@given(st.lists(st.tuples(st.floats(-300, 400), st.floats(-300, 400)), min_size=3, max_size=3))
def test_a_clipped_triangle_has_the_pixels_of_the_whole(points):
    """pycocotools draws the part inside of the image of either; only pixels on its border may differ."""
    polygon = [coordinate for point in points for coordinate in point]
    clipped = clip_polygon(polygon, SIZE[1], SIZE[0])
    assert all(0 <= x <= SIZE[1] and 0 <= y <= SIZE[0] for x, y in zip(clipped[::2], clipped[1::2], strict=True))
    if len(clipped) < 6:
        return
    ours, whole = (
        pycocotools.mask.decode(pycocotools.mask.frPyObjects([p], *SIZE))[..., 0] for p in (clipped, polygon)
    )
    perimeter = 2 * sum(SIZE) + 2 * sum(SIZE)
    assert (ours != whole).sum() <= perimeter


def test_a_clean_file_stays_as_it_is_without_a_line(lvis, caplog):
    data, expected = valid(lvis), valid(lvis)
    assert normalise(data) == [] and data == expected and not caplog.records


def test_a_file_without_images_is_one_error(lvis, tmp_path):
    path = tmp_path / "file.json"
    path.write_text(json.dumps({**valid(lvis), "images": [], "annotations": []}))
    with pytest.raises(InputError, match="lists no images"):
        load_dataset(str(path), str(tmp_path), {1: 0, 2: 1, 3: 2})
