"""Datasets that Detectron2 has registered: read by us they are what its loaders make of them, and are checked too."""

import copy
import json
import logging
from types import SimpleNamespace

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.lvis import get_lvis_instances_meta, register_lvis_instances
from PIL import Image

from eql_d2.data.detectron2_sets import take_over
from eql_d2.engine.dataset_checks import check_dataset
from eql_d2.errors import InputError

KINDS = {
    "coco": (register_coco_instances, "coco/annotations/instances_{}2017.json", "coco/{}2017"),
    "lvis_v1": (register_lvis_instances, "lvis/lvis_v1_{}.json", "coco/"),
}


@pytest.fixture
def registered():
    """``registered(kind, file, folder)`` is the name of a dataset, as Detectron2 registers it."""
    names = []

    def register(kind, file, folder, metadata=None):
        names.append(f"taken_over_{kind}_{len(names)}")
        if metadata is None:
            metadata = get_lvis_instances_meta(kind) if kind == "lvis_v1" else {}
        KINDS[kind][0](names[-1], metadata, str(file), str(folder))
        return names[-1]

    yield register
    for name in names:
        DatasetCatalog.pop(name, None)
        MetadataCatalog.pop(name, None)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("kind", KINDS)
def test_real_files_stay_as_they_are(shared_data, registered, kind, split):
    _, file, folder = KINDS[kind]
    name = registered(kind, shared_data / file.format(split), f"{shared_data}/{folder.format(split)}")
    expected = DatasetCatalog.get(name)
    before = MetadataCatalog.get(name).as_dict()
    take_over(name)
    assert DatasetCatalog.get(name) == expected
    after = MetadataCatalog.get(name).as_dict()
    assert {key: after[key] for key in before} == before


@pytest.fixture
def small(tmp_path):
    """A file in COCO's format, which ``small(change)`` writes, with its image."""
    Image.new("RGB", (64, 48)).save(tmp_path / "0.png")
    box = {"image_id": 1, "category_id": 5, "area": 100, "iscrowd": 0, "segmentation": [[1, 1, 9, 1, 9, 9]]}
    data = {
        "images": [{"id": 1, "file_name": "0.png", "height": 48, "width": 64}],
        "annotations": [{**box, "id": i, "bbox": [1, 1, 8, 8]} for i in (1, 2, 3)],
        "categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}],
    }

    def write(change=lambda data: None):
        content = copy.deepcopy(data)
        change(content)
        path = tmp_path / "file.json"
        path.write_text(json.dumps(content))
        return path

    return write


def check(name, setting="train_sets"):
    keys = {"train_sets": "DATASETS.TRAIN", "test_sets": "DATASETS.TEST", "num_classes": "NUM_CLASSES"}
    run = SimpleNamespace(keys=keys, num_classes=None, mask_on=True)
    return check_dataset(run, setting, name)


def test_keypoints_are_those_of_detectron2(registered, small):
    path = small(lambda data: data["annotations"][0].update(keypoints=[3, 4, 2, 0, 0, 0], num_keypoints=1))
    name = registered("coco", path, path.parent)
    expected = DatasetCatalog.get(name)
    for _ in range(2):  # reading twice does not move them twice
        take_over(name)
        assert DatasetCatalog.get(name) == expected
        assert expected[0]["annotations"][0]["keypoints"] == [3.5, 4.5, 2, 0.5, 0.5, 0]


@pytest.mark.parametrize("setting", ["train_sets", "test_sets"])
def test_what_is_odd_is_said_and_mended(registered, small, setting, caplog):
    def change(data):
        data["annotations"][0].update(iscrowd=1)
        data["annotations"][1].update(bbox=[1, 1, 700, 8])
        data["annotations"][2].update(bbox=[1, 1, 0, 8])

    path = small(change)
    name = registered("coco", path, path.parent)
    with caplog.at_level(logging.WARNING):
        assert check(name, setting) == ["cat", "dog"]
    assert "clipped 1 of 3 annotations (id 2 first)" in caplog.text and "left out 1 of 3" in caplog.text
    assert ("1 of 2 objects" in caplog.text) == (setting == "train_sets")
    boxes = [a["bbox"] for a in DatasetCatalog.get(name)[0]["annotations"]]
    assert boxes == [[1, 1, 8, 8], [1, 1, 63, 8]]


def test_a_file_is_parsed_once(registered, small, monkeypatch):
    path = small()
    name, opened = registered("coco", path, path.parent), []
    real = open
    monkeypatch.setattr("builtins.open", lambda file, *args, **kw: opened.append(str(file)) or real(file, *args, **kw))
    check(name, "train_sets")
    check(name, "test_sets")
    DatasetCatalog.get(name)
    assert opened.count(str(path)) == 1


def test_missing_images_are_found_before_the_run(registered, small):
    path = small(lambda data: data["images"].append({"id": 2, "file_name": "1.png", "height": 48, "width": 64}))
    with pytest.raises(InputError, match="1 of 2 images are not there, image 2 first: .*1.png"):
        check(registered("coco", path, path.parent), "test_sets")


def test_another_file_under_a_known_name(registered, small):
    metadata = {"thing_classes": ["cat", "owl"], "thing_dataset_id_to_contiguous_id": {5: 0, 9: 1}}
    name = registered("coco", small(), small().parent, metadata)
    with pytest.raises(InputError, match="category 9 is 'dog', and 'owl' for .* as Detectron2 knows it"):
        check(name)


def test_names_are_the_same_in_other_spellings(registered, small):
    """And LVIS v1's bull is horned_cow in Detectron2's metadata of it, but a horned cow of other sets is none."""
    metadata = {"thing_classes": ["CAT", "dog "], "thing_dataset_id_to_contiguous_id": {5: 0, 9: 1}}
    check(registered("coco", small(), small().parent, metadata))

    bull = small(lambda data: data["categories"][0].update(name="bull"))
    metadata = {"thing_classes": ["horned_cow", "dog"], "thing_dataset_id_to_contiguous_id": {5: 0, 9: 1}}
    with pytest.raises(InputError, match="category 5 is 'bull', and 'horned_cow'"):
        check(registered("coco", bull, bull.parent, metadata))
    metadata["thing_classes"] += [f"class {i}" for i in range(1201)]
    take_over(registered("coco", bull, bull.parent, metadata))


def test_ids_that_are_not_lvis_s(registered, small):
    name = registered("lvis_v1", small(), small().parent, {"thing_classes": ["a", "b"]})
    with pytest.raises(InputError, match="category 5 is 'cat', and None"):
        check(name)


def test_loaders_of_others_stay():
    def load():
        return []

    DatasetCatalog.register("taken_over_not", load)
    try:
        take_over("taken_over_not")
        assert DatasetCatalog["taken_over_not"] is load
    finally:
        DatasetCatalog.remove("taken_over_not")
        MetadataCatalog.pop("taken_over_not", None)
