"""Hostile annotation files and configs: whatever is in them, they work or are one clear error.

`make test` tries 200 of each kind, the same ones every time; tests/slow at least 2,000 new ones.
"""

import copy
import json
import math
import re

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.mask import encode

from eql_d2 import ClassFrequencies, build_cls_loss
from eql_d2.data.annotations import read_annotations, run_lengths
from eql_d2.data.image_errors import ExplainedMapper
from eql_d2.data.registration import register_dataset
from eql_d2.engine import Trainer, check_run, load_config
from eql_d2.engine.dataset_checks import explained_dataset_errors
from eql_d2.errors import InputError

NAME = "eql_d2_hostile"
SIZE = 24  # pixels of an image's side
NOISE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)

# What takes the place of a value. `json` writes and reads NaN and Infinity.
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from(
        [
            math.nan,
            math.inf,
            -1,
            0,
            1e308,
            10**30,
            "../../etc/passwd",
            "/etc/passwd",
            [],
            {},
            [[]],
            [None],
            [1, 2],
            {"size": [SIZE, SIZE], "counts": "~~~"},
            {"size": [SIZE, SIZE], "counts": [-5, 581]},
            [[1, 2, 3, 4]],
            [[0, 0, 5, 0, 10, 0]],
            {"id": 1},
        ]
    ),
).map(copy.deepcopy)  # a case changes what it drew, and the next must not see that
BREAK_IMAGE = {
    "delete": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "truncate": lambda path: path.write_bytes(path.read_bytes()[:90]),
    "resize": lambda path: Image.new("RGB", (SIZE + 1, SIZE)).save(path),
}


def valid_data(lvis: bool) -> dict:
    """Three images, the last empty; three categories, one without objects; polygons, an RLE, a crowd."""
    box = {"bbox": [2, 3, 10, 12], "area": 120, "iscrowd": 0, "segmentation": [[2, 3, 12, 3, 12, 15]]}
    counts = [50, 8, SIZE * SIZE - 58]
    data = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": SIZE, "width": SIZE} for i in (4, 9, 12)],
        "categories": [{"id": i, "name": name} for i, name in ((3, "a"), (70, "b"), (8, "c"))],
        "annotations": [
            {**box, "id": 1, "image_id": 4, "category_id": 3},
            {**box, "id": 2, "image_id": 9, "category_id": 70},
            {**box, "id": 5, "image_id": 9, "category_id": 3, "segmentation": {"size": [SIZE] * 2, "counts": counts}},
        ],
    }
    if lvis:
        for image in data["images"]:
            image.update(neg_category_ids=[8], not_exhaustive_category_ids=[70])
        for category in data["categories"]:
            category["frequency"] = "r"
    else:
        data["annotations"].append({**box, "id": 6, "image_id": 4, "category_id": 3, "iscrowd": 1})
    return json.loads(json.dumps(data))  # no two places share a value


def paths(value, prefix=()) -> list:
    """Where every value in nested dicts and lists is."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, inner in items for p in ((*prefix, key), *paths(inner, (*prefix, key)))]


@st.composite
def hostile_data(draw):
    """A dataset in which one to three values are replaced, dropped or doubled."""
    data = valid_data(lvis=draw(st.booleans()))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(paths(data)))
        parent = data
        for key in path[:-1]:
            parent = parent[key]
        what = draw(st.sampled_from(["replace", "replace", "drop", "double"]))
        if what == "drop":
            del parent[path[-1]]
        elif what == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[path[-1]]))
        else:
            parent[path[-1]] = draw(JUNK)
        if not paths(data):
            break
    return data


@pytest.fixture
def folder(tmp_path):
    return tmp_path


@pytest.fixture
def cfg(tiny_cfg):
    return tiny_cfg(
        *("DATASETS.TRAIN", (NAME,), "DATASETS.TEST", (NAME,)),
        *("MODEL.ROI_BOX_HEAD.CLS_LOSS.COUNTS_FILE", "", "MODEL.MASK_ON", True),
        *("INPUT.MASK_FORMAT", "bitmask"),
        *("MODEL.ROI_HEADS.NUM_CLASSES", 3),
        *("DATALOADER.FILTER_EMPTY_ANNOTATIONS", False),
    )


def use(cfg, folder, text: str, break_image=None) -> str:
    """All that a run does with an annotation file: "used", or the message of a ValueError. Anything else is a bug."""
    path = folder / "annotations.json"
    path.write_text(text)
    for i in (4, 9, 12):
        Image.fromarray(NOISE).save(folder / f"{i}.png")
    if break_image:
        BREAK_IMAGE[break_image](folder / "9.png")
    try:
        register_dataset(NAME, str(path), str(folder))
        check_run(cfg, train=True)
        ClassFrequencies.from_dataset(NAME)
        with explained_dataset_errors([NAME]):
            dicts = DatasetCatalog.get(NAME)
        mapper = ExplainedMapper(DatasetMapper(cfg, True))
        for dataset_dict in dicts:
            mapper(dataset_dict)
        evaluate(cfg, dicts)
        return "used"
    except ValueError as error:
        return str(error)
    finally:
        if NAME in DatasetCatalog.list():
            DatasetCatalog.remove(NAME)
        MetadataCatalog.pop(NAME, None)


def evaluate(cfg, dicts) -> None:
    """The boxes of the first object of each image as detections."""
    evaluator = Trainer.build_evaluator(cfg, NAME)
    evaluator.reset()
    for image in dicts:
        objects = image["annotations"][:1]
        boxes = [BoxMode.convert(o["bbox"], o["bbox_mode"], BoxMode.XYXY_ABS) for o in objects]
        predicted = Instances((image["height"], image["width"]))
        predicted.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        predicted.pred_classes = torch.tensor([o["category_id"] for o in objects], dtype=torch.int64)
        predicted.scores = torch.ones(len(objects))
        evaluator.process([image], [{"instances": predicted}])
    evaluator.evaluate()


def assert_clear(message: str) -> None:
    """It worked, or one line that is no essay names the file, or the image of a file, or the number of categories."""
    assert message == "used" or re.search(r"annotations\.json|^image \S+, /\S+, cannot|NUM_CLASSES", message), message
    assert "\n" not in message and len(message) < 600, message


pytestmark = pytest.mark.filterwarnings("ignore")
every_fixture_once = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("lvis", [False, True])
def test_the_valid_file_is_used(cfg, folder, lvis):
    assert use(cfg, folder, json.dumps(valid_data(lvis))) == "used"


@every_fixture_once
@given(data=hostile_data())
def test_values(cfg, folder, data):
    assert_clear(use(cfg, folder, json.dumps(data)))


@every_fixture_once
@given(st.booleans(), st.data())
def test_truncated_and_garbled_text(cfg, folder, lvis, data):
    text = json.dumps(valid_data(lvis))
    at = data.draw(st.integers(0, len(text) - 1))
    rest = data.draw(st.one_of(st.just(""), st.text(max_size=2).map(lambda garbage: garbage + text[at + 1 :])))
    assert_clear(use(cfg, folder, text[:at] + rest))


@pytest.mark.parametrize("break_image", BREAK_IMAGE)
@pytest.mark.parametrize("lvis", [False, True])
def test_broken_images(cfg, folder, lvis, break_image):
    message = use(cfg, folder, json.dumps(valid_data(lvis)), break_image)
    missing = break_image == "delete"  # which is seen without reading it
    assert re.search("image 9 first: .*9.png" if missing else "image 9, .*9.png, cannot be used", message)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d["annotations"][0].update(bbox=[math.nan, 1, 2, 2]), "annotation 1 must have a `bbox`"),
        (lambda d: d["annotations"][0].update(bbox=[1, 1, -2, 2]), "annotation 1 must have a `bbox`"),
        (lambda d: d["annotations"][0].update(bbox="box"), "annotation 1 must have a `bbox`.*got 'box'"),
        (lambda d: d["annotations"][1].update(id=1), "annotation 1 is there twice"),
        (lambda d: d["annotations"][1].update(category_id=71), "annotation 2 has the category id 71"),
        (lambda d: d["images"][1].update(id=4), "image 4 is there twice"),
        (lambda d: d["images"][0].update(height=0), "image 4 must have a whole number of pixels as its `height`"),
        (lambda d: d["images"].__setitem__(2, "x"), "image number 2 of the file must be an object"),
        (lambda d: d["categories"].clear(), "`categories` is empty"),
        (lambda d: d["annotations"][0].update(segmentation=[[0, math.inf] * 3]), "annotation 1 .*finite numbers"),
        (lambda d: d["images"][0].update(height=10**6, width=10**6), "image 4 has 1000000 x 1000000 pixels, more"),
        (lambda d: d["annotations"][2]["segmentation"].update(counts=[600]), "annotation 5 has an RLE whose runs"),
        (lambda d: d["annotations"][2]["segmentation"].update(counts="0oo1"), "annotation 5 has an RLE whose runs"),
        (lambda d: d["annotations"][0].pop("area"), "annotation 1 has no `area`"),
        (lambda d: d["annotations"].clear(), "no object that can be used|empty training set"),
        # Used, as by COCO's and LVIS's APIs:
        (lambda d: d["annotations"][0].update(bbox=[1, 1, 0, 2]), "^used$"),
        (lambda d: d["annotations"][0].update(bbox=[0, 0, 1e308, 9]), "^used$"),
        (lambda d: d["annotations"][0].update(bbox=[1e308, 0, 9, 9]), "^used$"),
        (lambda d: d["annotations"][0].update(segmentation=[[1e8, 0, 1e9, 0, 1e9, 9]]), "^used$"),
        (lambda d: d["annotations"][0].update(segmentation=[[0, 0, 5, 0, 1e9, 9]]), "^used$"),
        (lambda d: d["annotations"][0].update(segmentation=[[1, 1, 2, 2]]), "^used$"),
        (lambda d: d["annotations"][0].update(image_id=77), "^used$"),
        (lambda d: d["images"].pop(2), "^used$"),
    ],
)
@pytest.mark.parametrize("lvis", [False, True])
def test_what_the_message_says(cfg, folder, lvis, change, message):
    data = valid_data(lvis)
    change(data)
    found = use(cfg, folder, json.dumps(data))
    assert_clear(found)
    assert re.search(message, found), found


@pytest.mark.parametrize("depth", [900, 10**5])  # below and above what Python's parser takes
@pytest.mark.parametrize("key", ["bbox", "segmentation", "area"])
def test_deep_nesting(cfg, folder, key, depth):
    data = valid_data(lvis=True)
    data["annotations"][0][key] = "nested"
    assert_clear(use(cfg, folder, json.dumps(data).replace('"nested"', depth * "[" + depth * "]")))


@pytest.mark.parametrize("num_categories", [1, 3])
def test_one_category_or_one_that_never_occurs(cfg, folder, num_categories):
    data = valid_data(lvis=True)
    del data["categories"][num_categories:]
    data["annotations"] = [a for a in data["annotations"] if a["category_id"] == 3]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_categories
    assert use(cfg, folder, json.dumps(data)) == "used"


def test_what_is_left_out_is_counted(folder):
    data = valid_data(lvis=True)
    data["annotations"][0]["bbox"][2] = 0
    data["annotations"][1]["image_id"] = 77
    path = folder / "annotations.json"
    path.write_text(json.dumps(data))
    read = read_annotations(path)
    assert [a["id"] for a in read["annotations"]] == [5]
    assert f"{path}: left out 2 of 3 annotations (id 1 first)" in read.notes[0]


def test_rle_as_pycocotools_writes_it():
    """The lengths of compressed runs are those of the uncompressed form."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        mask = np.asfortranarray(generator.random((40, 300)) < generator.random(), np.uint8)
        flat = np.concatenate([[0], mask.T.ravel(), [2]])  # columns first; a run of zeros, of length 0 maybe, first
        changes = np.flatnonzero(np.diff(flat))
        expected = np.diff(np.concatenate([[0], changes])).tolist()
        assert run_lengths(encode(mask)["counts"].decode()) == expected


# ---- configs ----

CONFIG = {
    "MODEL": {
        "ROI_HEADS": {"NAME": "EQLROIHeads", "NUM_CLASSES": 7, "LAMBDA": None, "PRIOR_PROB": None},
        "ROI_BOX_HEAD": {
            "CLS_LOSS": {
                "EqualizationLoss": {"PRIOR_PROB": 0.01, "TAIL": {"GROUPS": "r"}},
                "NAME": "",
                "COUNTS_FILE": "",
            },
            "CALIBRATION": {"NAME": "NorCal", "STRENGTH": 0.5},
        },
    },
    "DATASETS": {"TRAIN": ["mini_lvis_train"], "TEST": [], "REGISTER": []},
    "SOLVER": {"CLASSIFIER_LR_FACTOR": 20.0},
    "TEST": {"LVIS_BACKEND": "eql_d2"},
}


@st.composite
def hostile_config(draw):
    """The config above with one to three values replaced, or keys renamed."""
    config = copy.deepcopy(CONFIG)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(paths(config)))
        parent = config
        for key in path[:-1]:
            parent = parent[key]
        if draw(st.booleans()) and isinstance(parent, dict):
            parent[draw(st.text(max_size=4))] = parent.pop(path[-1])
        else:
            parent[path[-1]] = draw(JUNK)
        if not paths(config):
            break
    return config


@every_fixture_once
@given(config=hostile_config())
def test_configs(counts_file, folder, config):
    """A config is loaded, checked and its head's loss is built; or it is one of the errors that a tool prints."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    try:
        cfg = load_config(str(path), ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(folder)])
        check_run(cfg, train=False)
        build_cls_loss(cfg)
    except InputError as error:
        assert str(error)


@pytest.mark.parametrize("text", ["MODEL: [", "MODEL: 3", "- 1", "\x00", "!!python/object/apply:os.system ['true']"])
def test_config_files_that_are_none(folder, text):
    path = folder / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError):
        load_config(str(path))
