"""What an image was checked for, against loops over the annotation files, real and made up."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import load_lvis_json

from eql_d2.data.federated import checked_categories, checked_mask, get_checked_dataset_dicts
from eql_d2.data.registration import register_dataset


def an_image(found=(), crowds=(), absent=(), unfinished=()):
    annotations = [{"category_id": c} for c in found] + [{"category_id": c, "iscrowd": 1} for c in crowds]
    return {
        "annotations": annotations,
        "neg_category_ids": list(absent),
        "not_exhaustive_category_ids": list(unfinished),
    }


def test_found_and_absent_but_not_those_with_unmarked_objects():
    image = an_image(found=[0, 3, 3, 5, 6], absent=[2, 8], unfinished=[6])  # dataset ids count from 1
    assert checked_categories(image) == [0, 1, 3, 6, 7]
    assert checked_categories(an_image(found=[2, 4], crowds=[4, 6])) == [2]
    assert checked_categories(an_image()) == []


def test_ids_of_the_dataset_are_translated():
    image = an_image(found=[2], absent=[70, 9], unfinished=[5])
    assert checked_categories(image, order={5: 0, 9: 1, 31: 2, 70: 3}) == [1, 2, 3]


def test_the_mask_of_a_batch():
    images = [{"checked_categories": [0, 4]}, {"checked_categories": []}, {"checked_categories": [2]}]
    assert checked_mask(images, 5).int().tolist() == [[1, 0, 0, 0, 1], [0] * 5, [0, 0, 1, 0, 0]]


@pytest.fixture
def register(tmp_path):
    """A function that registers an LVIS-format file of one's own; what it registered is taken back after the test."""
    names = []

    def register(name, ids, absent, found=0, **changes):
        """Two images with one object of ``ids[found]`` each; the first lacks the categories ``absent``."""
        data = {
            "images": [
                {"id": i, "file_name": "x.png", "height": 9, "width": 9, "neg_category_ids": a} | parts
                for i, a in ((1, absent), (2, []))
                for parts in [{"not_exhaustive_category_ids": []} | changes]
            ],
            "categories": [{"id": i, "name": f"c{k}", "frequency": "r"} for k, i in enumerate(ids)],
            "annotations": [
                {"id": i, "image_id": i, "category_id": ids[found], "bbox": [1, 1, 5, 5], "area": 25} for i in (1, 2)
            ],
        }
        (tmp_path / "x.png").touch()
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(data))
        register_dataset(name, str(path), str(tmp_path))
        names.append(name)
        return name

    yield register
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_several_datasets_each_with_its_own_ids(register):
    one = register("eql_d2_federated_1", ids=[10, 20, 30], absent=[30])
    other = register("eql_d2_federated_2", ids=[30, 40, 50], absent=[30, 50], found=1)
    images = get_checked_dataset_dicts([one, other], filter_empty=True)
    assert [image["checked_categories"] for image in images] == [[0, 2], [0], [0, 1, 2], [1]]
    assert get_checked_dataset_dicts(other) == images[2:]


def test_a_category_that_the_dataset_does_not_have(register):
    name = register("eql_d2_federated_unknown", ids=[1, 2], absent=[7])
    with pytest.raises(ValueError, match=f"image 1 of '{name}' 7 is a part .* IMAGE_LABELS|IMAGE_LABELS.*image 1 of"):
        get_checked_dataset_dicts(name)


def test_a_dataset_without_negatives_is_refused(register):
    name = register("eql_d2_federated_blank", ids=[1, 2], absent=[])
    with pytest.raises(ValueError, match=f"IMAGE_LABELS is True, but no image of '{name}' lists neg_category_ids"):
        get_checked_dataset_dicts(name)


@pytest.mark.parametrize("split", ["train", "val"])
def test_real_images_are_checked_for_what_their_file_says(shared_data, split):
    path = shared_data / "lvis" / f"lvis_v1_{split}.json"
    data = json.loads(path.read_text())
    images = load_lvis_json(str(path), f"{shared_data}/coco/")
    assert len(images) == len(data["images"]) > 30
    by_id = {image["id"]: image for image in data["images"]}
    for image in images:
        original = by_id[image["image_id"]]
        expected = []
        for category in data["categories"]:
            i = category["id"]
            found = any(a["image_id"] == original["id"] and a["category_id"] == i for a in data["annotations"])
            if (found or i in original["neg_category_ids"]) and i not in original["not_exhaustive_category_ids"]:
                expected.append(i - 1)
        assert checked_categories(image) == expected
    mask = checked_mask([{"checked_categories": checked_categories(image)} for image in images], 1203)
    assert mask.sum() == sum(len(checked_categories(image)) for image in images) and mask.dtype == torch.bool


def test_unmarked_objects_occur_in_lvis(shared_data):
    """12 of the 100 images of LVIS v0.5 val, whose categories with unmarked objects are all found ones."""
    data = json.loads((shared_data / "evaluation" / "lvis_v0.5_val_100.json").read_text())
    left_out = 0
    for image in data["images"]:
        found = {a["category_id"] - 1 for a in data["annotations"] if a["image_id"] == image["id"]}
        ids = image["neg_category_ids"], image["not_exhaustive_category_ids"]
        checked = set(checked_categories(an_image(found, (), *ids)))
        absent = {i - 1 for i in image["neg_category_ids"]}
        assert absent <= checked <= found | absent
        left_out += found > checked - absent
    assert left_out == 12
