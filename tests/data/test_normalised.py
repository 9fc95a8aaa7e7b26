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

from eql_d2.data.annotations import read_annotations
from eql_d2.data.clipping import clip_polygon
from eql_d2.data.normalised import normalise
from eql_d2.data.registration import load_dataset, register_dataset
from eql_d2.errors import InputError
from eql_d2.evaluation.coco_evaluation import LongTailCOCOEvaluator
from eql_d2.evaluation.lvis_evaluation import LongTailLVISEvaluator
from eql_d2.evaluation.tail_analysis import TailAnalysis

SIZE = (96, 128)


def valid(lvis: bool) -> dict:
    """Four images of 96 x 128 px with two boxes each, of three categories."""
    data = {"images": [], "annotations": [], "categories": [{"id": k + 1, "name": f"name_{k}"} for k in range(3)]}
    for i in range(4):
        image = {"id": i + 1, "file_name": f"{i}.png", "height": SIZE[0], "width": SIZE[1]}
        if lvis:
            image.update(neg_category_ids=[], not_exhaustive_category_ids=[])
        data["images"].append(image)
        for j in range(2):
            x, y, w, h = 5 + 60 * j, 10 + i, 30, 20
            data["annotations"].append(
                {
                    "id": len(data["annotations"]) + 1,
                    "image_id": i + 1,
                    "category_id": (i + j) % 3 + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
    for k, category in enumerate(data["categories"] if lvis else ()):
        category["frequency"] = "rcf"[k]
    return data


def set_each(part, key, value):
    def change(data):
        for entry in data[part]:
            entry[key] = value(entry) if callable(value) else value

    return change


def far_box(data):
    data["annotations"][0].update(
        bbox=[100, -30, 600, 500], segmentation=[[100, -30, 700, -30, 700, 470, 100, 470]], area=28 * 96
    )


CHANGES = {
    "empty url": set_each("images", "coco_url", ""),
    "null url": set_each("images", "coco_url", None),
    "zero url": set_each("images", "coco_url", 0),
    "ids from 0": set_each("annotations", "id", lambda a: a["id"] - 1),
    "float ids": set_each("annotations", "image_id", lambda a: float(a["image_id"])),
    "float sizes": set_each("images", "width", lambda image: float(image["width"])),
    "float categories": set_each("annotations", "category_id", lambda a: float(a["category_id"])),
    "null crowd": set_each("annotations", "iscrowd", None),
    "far box": far_box,
}


@pytest.fixture(params=[False, True], ids=["coco", "lvis"])
def lvis(request):
    return request.param


@pytest.mark.parametrize("name", CHANGES)
def test_it_reads_as_the_valid_file_does(name, lvis, tmp_path):
    data, expected = valid(lvis), valid(lvis)
    CHANGES[name](data)
    if name == "far box":
        expected["annotations"][0].update(
            bbox=[100, 0, 28, 96], segmentation=[[100, 0, 128, 0, 128, 96, 100, 96]], area=28 * 96
        )
    path = tmp_path / "file.json"
    path.write_text(json.dumps(data))
    read = read_annotations(path)
    if name == "far box":
        (polygon,) = read["annotations"][0].pop("segmentation")
        (of_expected,) = expected["annotations"][0].pop("segmentation")
        assert {*zip(polygon[::2], polygon[1::2], strict=True)} == {
            *zip(of_expected[::2], of_expected[1::2], strict=True)
        }
    assert read == expected
    json.dumps(read)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("backend", ["eql_d2", "lvis"])
def test_a_perfect_detector_has_100(name, backend, lvis, tmp_path):
    if backend == "lvis" and not lvis:
        pytest.skip("COCO's metrics have one backend")
    data = valid(lvis)
    CHANGES[name](data)
    path = tmp_path / "file.json"
    path.write_text(json.dumps(data))
    for i in range(4):
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
