import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from eql_d2 import ClassFrequencies
from eql_d2.data.frequencies import FrequenciesNotFound
from eql_d2.data.registration import register_dataset
from eql_d2.drawing.picture import PredictionPicture
from eql_d2.engine import Trainer, check_run, load_config

NAME = "eql_d2_registered"
IDS = {"zebra": 40, "ant": 7, "cat": 900}  # neither in order nor 1..K


def annotations(lvis):
    """Two images of 64 px and three categories; the second image has no object."""
    data = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 64} for i in (5, 3)],
        "categories": [{"id": i, "name": name} for name, i in IDS.items()],
        "annotations": [
            {"id": i, "image_id": 5, "category_id": category, "bbox": [10 * i, 8, 20, 30], "area": 600, "iscrowd": 0}
            for i, category in ((1, 7), (2, 900))
        ],
    }
    if lvis:
        for image in data["images"]:
            image.update(neg_category_ids=[40], not_exhaustive_category_ids=[])
        for category in data["categories"]:
            category["frequency"] = "r"
    return data


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train2017").mkdir()
    for i in (5, 3):
        Image.fromarray(np.full((64, 64, 3), 50 * i, np.uint8)).save(tmp_path / "train2017" / f"{i}.png")
    yield tmp_path
    if NAME in DatasetCatalog.list():
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def register(folder, data, images="train2017"):
    path = folder / "annotations.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    entry = [NAME, str(path), str(folder / images)]
    load_config("", ["DATASETS.REGISTER", [entry]])
    return entry


@pytest.mark.parametrize("lvis", [False, True])
def test_a_file_becomes_a_dataset(folder, lvis):
    register(folder, annotations(lvis))
    metadata = MetadataCatalog.get(NAME)
    assert metadata.evaluator_type == ("lvis" if lvis else "coco")
    assert metadata.thing_classes == ["ant", "zebra", "cat"]
    assert metadata.thing_dataset_id_to_contiguous_id == {7: 0, 40: 1, 900: 2}
    empty, full = DatasetCatalog.get(NAME)
    assert (empty["image_id"], full["image_id"]) == (3, 5) and empty["annotations"] == []
    assert full["file_name"] == str(folder / "train2017" / "5.png")
    assert [a["category_id"] for a in full["annotations"]] == [0, 2]
    assert full.get("neg_category_ids") == ([40] if lvis else None)
    assert ClassFrequencies.from_dataset(NAME).image_count.tolist() == [1, 0, 1]


@pytest.mark.parametrize("images", ["train2017", "."])
def test_images_are_found_by_url(folder, images):
    data = annotations(lvis=True)
    for image in data["images"]:
        image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"
        image["file_name"] = "COCO_val2014_of_another_release.jpg"  # as in LVIS v0.5
    register(folder, data, images)
    assert DatasetCatalog.get(NAME)[0]["file_name"].endswith("train2017/3.png")


@pytest.mark.parametrize("lvis", [False, True])
def test_it_evaluates_with_its_own_category_ids(folder, tiny_cfg, lvis):
    """Perfect predictions in contiguous ids get an AP of 100 on ids of the file."""
    register(folder, annotations(lvis))
    cfg = tiny_cfg("DATASETS.TEST", (NAME,), "MODEL.ROI_HEADS.NUM_CLASSES", 3, "DATASETS.TRAIN", ())
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.COUNTS_FILE = ""
    evaluator = Trainer.build_evaluator(cfg, NAME)
    evaluator.reset()
    for image in DatasetCatalog.get(NAME):
        predicted = Instances((64, 64))
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in image["annotations"]]
        predicted.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        predicted.pred_classes = torch.tensor([a["category_id"] for a in image["annotations"]], dtype=torch.int64)
        predicted.scores = torch.ones(len(boxes))
        evaluator.process([image], [{"instances": predicted}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


def test_again_changes_nothing_and_another_file_needs_another_name(folder):
    name, path, images = register(folder, annotations(lvis=False))
    register_dataset(name, path, images)
    with pytest.raises(ValueError, match=rf"'{NAME}' is taken by .*annotations.json, so other.json needs another"):
        register_dataset(name, "other.json", images)
    with pytest.raises(ValueError, match="'coco_2017_val' is taken"):
        register_dataset("coco_2017_val", path, images)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda data: "{", "is not a JSON file"),
        (lambda data: data.pop("categories") and None, "lacks.*categories"),
        (lambda data: data.update(categories=[]), "at least one category"),
        (lambda data: data["categories"].append(data["categories"][0]), "category 40 is there twice"),
        (lambda data: data["images"][0].pop("not_exhaustive_category_ids") and None, "lack 'not_exhaustive"),
        (lambda data: data["annotations"][0].update(category_id=8), "annotation 1 has the category id 8"),
        (lambda data: data["categories"][1].pop("frequency") and None, "1 of the categories lack 'frequency'.*id 7"),
    ],
)
def test_bad_files(folder, change, message):
    data = annotations(lvis=True)
    changed = change(data)
    with pytest.raises(ValueError, match=f"{NAME}.*{message}"):
        register(folder, changed if isinstance(changed, str) else data)
    assert NAME not in DatasetCatalog.list()


def test_bad_places(folder):
    with pytest.raises(ValueError, match="there is no image folder .*val2017"):
        register(folder, annotations(lvis=False), "val2017")
    with pytest.raises(ValueError, match=r"\[name, annotation file, image folder\], got the entry 'x'"):
        load_config("", ["DATASETS.REGISTER", ["x"]])


def test_images_that_are_not_there(folder):
    register(folder, annotations(lvis=True), ".")
    with pytest.raises(ValueError, match="image 3 is none of .*which folder"):
        DatasetCatalog.get(NAME)


def test_an_image_outside_of_its_folder_is_refused(folder):
    Image.new("RGB", (64, 64)).save(folder / "private.png")
    for name in ("../private.png", str(folder / "private.png")):
        data = annotations(lvis=True)
        data["images"][0]["file_name"] = name  # the second that is looked at: the first tells where images are
        register(folder, data)
        with pytest.raises(ValueError, match="private.png' lies outside of the image folder .*train2017: refused"):
            DatasetCatalog.get(NAME)


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "", ".hidden", 3])
def test_a_name_that_files_cannot_be_called_by(folder, name):
    with pytest.raises(ValueError, match="letters, digits"):
        load_config("", ["DATASETS.REGISTER", [[name, "annotations.json", str(folder)]]])


@pytest.mark.parametrize("kind", ["coco", "lvis"])
def test_real_files_train_and_evaluate(shared_data, tmp_path, tiny_cfg, monkeypatch, kind):
    """The worked example of docs/custom_datasets.md, with a smaller model: COCO's 80 ids are not contiguous."""
    files = {
        "coco": [f"coco/annotations/instances_{split}2017.json" for split in ("train", "val")],
        "lvis": [f"lvis/lvis_v1_{split}.json" for split in ("train", "val")],
    }[kind]
    monkeypatch.setattr(PredictionPicture, "_draw", lambda *args: None)  # takes longer than all the rest
    names = [f"{NAME}_{kind}_{split}" for split in ("train", "val")]
    # LVIS finds its images in the folder above train2017, by URL.
    folders = ["coco/train2017", "coco/val2017"] if kind == "coco" else ["coco", "coco"]
    cfg = tiny_cfg(
        "DATASETS.REGISTER",
        [[n, str(shared_data / f), str(shared_data / d)] for n, f, d in zip(names, files, folders)],
        "DATASETS.TRAIN",
        (names[0],),
        "DATASETS.TEST",
        (names[1],),
        "MODEL.ROI_HEADS.NAME",
        "EQLROIHeads",
        "MODEL.ROI_BOX_HEAD.CLS_LOSS.COUNTS_FILE",
        "",
        "MODEL.ROI_HEADS.NUM_CLASSES",
        80 if kind == "coco" else 1203,
        "MODEL.RPN.POST_NMS_TOPK_TEST",
        5,
        "TEST.DETECTIONS_PER_IMAGE",
        10,
        "SOLVER.MAX_ITER",
        1,
        "SOLVER.IMS_PER_BATCH",
        2,
        "INPUT.MIN_SIZE_TEST",
        32,
    )
    try:
        results = Trainer(cfg).train()
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    assert ("AR@300" in results["bbox"]) == (kind == "lvis") and results["bbox"]["AP"] >= 0
    (counted,) = (tmp_path / "output").glob("class_counts_*.json")  # on first use
    assert len(json.loads(counted.read_text())["image_count"]) == cfg.MODEL.ROI_HEADS.NUM_CLASSES


def test_a_file_that_is_missing_stops_only_a_run_that_needs_it(folder, tiny_cfg):
    cfg = tiny_cfg("DATASETS.REGISTER", [[NAME, "nowhere.json", str(folder)]], "DATASETS.TEST", ())
    check_run(cfg, train=False)
    cfg.DATASETS.TRAIN = (NAME,)
    with pytest.raises(ValueError, match=f"annotation file of '{NAME}' .DATASETS.TRAIN. is not there: nowhere.json"):
        check_run(cfg, train=True)
    with pytest.raises(FrequenciesNotFound, match="nowhere.json"):
        ClassFrequencies.from_dataset(NAME)
