"""Two annotation files under one vocabulary, by hand, through the loader, and as `eql-d2 union` writes them."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from eql_d2.cli import main
from eql_d2.data.federated import CHECKED, get_checked_dataset_dicts
from eql_d2.data.loading import load_training_dicts
from eql_d2.data.registration import register_dataset
from eql_d2.data.union import union


def annotation(i, image, category, **more):
    square = [[0.0, 0.0, 4.0, 0.0, 4.0, 4.0, 0.0, 4.0]]
    box = {"bbox": [0.0, 0.0, 4.0, 4.0], "area": 16.0, "segmentation": square}
    return {"id": i, "image_id": image, "category_id": category, **box, **more}


def image(i, **more):
    return {"id": i, "file_name": f"{i}.png", "width": 8, "height": 8, **more}


FEDERATED = {
    "images": [
        image(1, neg_category_ids=[7], not_exhaustive_category_ids=[]),
        image(2, neg_category_ids=[3], not_exhaustive_category_ids=[9]),
    ],
    "annotations": [annotation(1, 1, 3), annotation(2, 1, 3), annotation(3, 2, 9)],
    "categories": [{"id": i, "name": n, "frequency": "r"} for i, n in ((3, "cat"), (7, "television_set"), (9, "owl"))],
}
EXHAUSTIVE = {
    "images": [image(1), image(5)],
    "annotations": [annotation(1, 5, 1), annotation(2, 5, 2, iscrowd=1), annotation(3, 1, 3)],
    "categories": [{"id": i, "name": n} for i, n in ((1, "tv"), (2, "person"), (3, "cat"))],
}


@pytest.fixture
def files(tmp_path):
    for name, content in (("lvis.json", FEDERATED), ("coco.json", EXHAUSTIVE)):
        (tmp_path / name).write_text(json.dumps(content))
    for i in (1, 2, 5):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    return tmp_path / "lvis.json", tmp_path / "coco.json"


def test_categories_and_what_is_known_of_each_image(files):
    first, second = union(files, same=[("tv", "television_set")])
    assert first["categories"] == second["categories"]
    assert [(c["id"], c["name"]) for c in first["categories"]] == [
        (3, "cat"),
        (7, "television_set"),
        (9, "owl"),
        (10, "person"),
    ]
    assert [a["category_id"] for a in second["annotations"]] == [7, 10, 3]
    assert [i["neg_category_ids"] for i in first["images"]] == [[7], [3]]  # nothing of person
    assert [i["neg_category_ids"] for i in second["images"]] == [[7, 10], [3]]  # nothing of owl
    assert [i["not_exhaustive_category_ids"] for i in first["images"]] == [[], [9]]
    counts = [(c["image_count"], c["instance_count"]) for c in first["categories"]]
    assert counts == [(2, 3), (1, 1), (1, 1), (0, 0)]  # a crowd region is no object


def test_images_of_a_validation_set_are_left_out(files, tmp_path):
    (tmp_path / "val.json").write_text(json.dumps({"images": [image(5)], "annotations": [], "categories": [
        {"id": 1, "name": "x"}]}))  # fmt: skip
    _, second = union(files, leave_out=[tmp_path / "val.json"])
    assert [i["id"] for i in second["images"]] == [1] and [a["id"] for a in second["annotations"]] == [3]


def test_an_unknown_name_is_refused(files):
    with pytest.raises(ValueError, match="no file has a category 'televison_set'; did you mean television_set"):
        union(files, same=[("tv", "televison_set")])


def test_the_written_files_train_together(files, tmp_path, tiny_cfg, capsys):
    out = tmp_path / "together"
    assert main(["union", str(out), *map(str, files), "--same", "tv=television_set"]) == 0
    assert "4 categories (MODEL.ROI_HEADS.NUM_CLASSES)" in capsys.readouterr().out
    names = ("eql_d2_test_union_lvis", "eql_d2_test_union_coco")
    for name, path in zip(names, files, strict=True):
        register_dataset(name, str(out / path.name), str(tmp_path))
    try:
        images = get_checked_dataset_dicts(list(names))
        assert [i[CHECKED] for i in images] == [[0, 1], [0], [0, 1, 3], [0, 1]]
        cfg = tiny_cfg("DATASETS.TRAIN", names)
        assert [i["dataset_source"] for i in load_training_dicts(cfg)] == [0, 0, 1, 1]
        assert "dataset_source" not in load_training_dicts(tiny_cfg("DATASETS.TRAIN", names[:1]))[0]
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_mistakes_in_the_command_are_one_line(files, capsys):
    assert main(["union", "out", str(files[0]), str(files[0])]) == 1
    assert main(["union", "out", *map(str, files), "--same", "tv"]) == 1
    assert capsys.readouterr().err.count("error: ") == 2
