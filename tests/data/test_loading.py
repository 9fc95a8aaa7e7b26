import copy
import gc
from contextlib import nullcontext

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, build, get_detection_dataset_dicts
from detectron2.structures import BoxMode

from eql_d2.config import default_config
from eql_d2.data.loading import histogram_at_once, load_training_dicts

NAME = "loading_test"


@pytest.fixture
def registered():
    """A list that its owner keeps: three images, one of them with crowd regions only, one without objects."""

    def an_object(category, **more):
        polygon = [[0, 0, 9, 0, 9, 9]]
        box = {"bbox": [0, 0, 9, 9], "bbox_mode": BoxMode.XYWH_ABS, "category_id": category}
        return {**box, "segmentation": polygon, "iscrowd": 0, **more}

    objects = [[an_object(0), an_object(1)], [an_object(1, iscrowd=1)], []]
    dicts = [
        {"file_name": f"{i}.jpg", "image_id": i, "height": 10, "width": 10, "annotations": of_image}
        for i, of_image in enumerate(objects)
    ]
    collecting = []

    def load():
        collecting.append(gc.isenabled())
        return dicts

    DatasetCatalog.register(NAME, load)
    MetadataCatalog.get(NAME).set(thing_classes=["a", "b"])
    yield dicts, collecting
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def cfg_with(mask_on=False, filter_empty=True):
    cfg = default_config()
    cfg.DATASETS.TRAIN = (NAME,)
    cfg.MODEL.MASK_ON = mask_on
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filter_empty
    return cfg


@pytest.mark.parametrize("filter_empty", [True, False])
def test_with_masks_it_is_what_detectron2_reads(registered, filter_empty):
    expected = get_detection_dataset_dicts([NAME], filter_empty=filter_empty)
    assert load_training_dicts(cfg_with(True, filter_empty)) == expected
    assert len(expected) == (1 if filter_empty else 3)


def test_without_masks_only_the_segmentation_is_missing(registered):
    dicts, _ = registered
    kept = copy.deepcopy(dicts)
    actual = load_training_dicts(cfg_with(filter_empty=False))
    assert dicts == kept
    for image in kept:
        for an_object in image["annotations"]:
            del an_object["segmentation"]
    assert actual == kept


def test_the_garbage_collector_is_paused_and_goes_on(registered):
    _, collecting = registered
    load_training_dicts(cfg_with())
    assert collecting == [False] and gc.isenabled()


def test_the_table_of_objects_is_detectron2_s(monkeypatch):
    images = [{"annotations": [{"category_id": c} for c in found]} for found in ((0, 1, 1), (), (2,))]
    images[0]["annotations"].append({"category_id": 0, "iscrowd": 1})
    tables: list[str] = []
    monkeypatch.setattr(build, "log_first_n", lambda level, text, **kwargs: tables.append(text))
    for context in (nullcontext(), histogram_at_once()):
        with context:
            build.print_instances_class_histogram(images, ["a", "b", "c"])
    assert "Distribution of instances" in tables[0] and tables[0] == tables[1]
