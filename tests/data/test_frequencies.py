import json
import os

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from eql_d2 import ClassFrequencies, TailRule
from eql_d2.data.frequencies import FrequenciesNotFound, tail_ratio
from eql_d2.data.letters import frequency_letter


@pytest.fixture
def annotations(tmp_path):
    """COCO format with non-contiguous category ids, a crowd region, an empty image and an empty category."""
    data = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 9, "width": 9} for i in (10, 11, 12, 13)],
        "categories": [{"id": 7, "name": "b"}, {"id": 3, "name": "a"}, {"id": 90, "name": "c"}],
        "annotations": [
            {"image_id": 10, "category_id": 3},
            {"image_id": 10, "category_id": 3},
            {"image_id": 11, "category_id": 3},
            {"image_id": 11, "category_id": 7},
            {"image_id": 12, "category_id": 7, "iscrowd": 1},
        ],
    }
    for i, annotation in enumerate(data["annotations"]):
        annotation.update(id=i, bbox=[1, 2, 3, 4])
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def dataset(annotations):
    """The annotations as a registered dataset."""
    name = "eql_d2_test_frequencies"
    DatasetCatalog.register(name, lambda: [])
    MetadataCatalog.get(name).set(json_file=str(annotations))
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_counts_images_and_instances(annotations):
    counts = ClassFrequencies.from_annotations(annotations)
    assert counts.image_count.tolist() == [2, 1, 0]
    assert counts.instance_count.tolist() == [3, 1, 0]
    assert counts.num_images == 2  # the crowd region and the empty image do not count
    assert counts.frequency.tolist() == [1.0, 0.5, 0.0]
    assert counts.groups == "rrr"


def test_counts_of_the_shared_lvis_files_agree_with_their_own_fields(shared_data):
    for split in ("train", "val"):
        path = shared_data / "lvis" / f"lvis_v1_{split}.json"
        categories = sorted(json.loads(path.read_text())["categories"], key=lambda c: c["id"])
        counts = ClassFrequencies.from_annotations(path)
        if split == "train":  # val repeats the counts of train
            assert counts.image_count.tolist() == [c["image_count"] for c in categories]
            assert counts.instance_count.tolist() == [c["instance_count"] for c in categories]
        assert counts.groups == "".join(c["frequency"] for c in categories)


@pytest.mark.parametrize("version, rare, common, frequent", [("v0.5", 454, 461, 315), ("v1", 337, 461, 405)])
def test_shipped_counts(version, rare, common, frequent):
    counts = ClassFrequencies.from_dataset(f"lvis_{version}_train")
    assert [counts.groups.count(g) for g in "rcf"] == [rare, common, frequent]
    assert counts.groups == "".join(map(frequency_letter, counts.image_count.tolist()))


def test_shipped_v1_counts_agree_with_detectron2():
    categories = MetadataCatalog.get("lvis_v1_train").get("class_image_count")
    if categories is None:
        from detectron2.data.datasets.lvis import get_lvis_instances_meta

        categories = get_lvis_instances_meta("lvis_v1")["class_image_count"]
    expected = [c["image_count"] for c in sorted(categories, key=lambda c: c["id"])]
    assert ClassFrequencies.from_dataset("lvis_v1_train").image_count.tolist() == expected


# Counted from the category files: ../shared/data/README.md
@pytest.mark.parametrize(
    "version, rule, tail",
    [
        ("v0.5", TailRule(lambda_=0.00177), 915),
        ("v0.5", TailRule(lambda_=0.00176), 912),
        ("v0.5", TailRule(), 915),
        ("v0.5", TailRule(groups="rc"), 915),
        ("v0.5", TailRule(groups="r"), 454),
        ("v1", TailRule(lambda_=0.00177), 876),
        ("v1", TailRule(lambda_=0.0010062), 798),
        ("v1", TailRule(max_image_count=100), 798),
        ("v1", TailRule(groups=""), 0),
    ],
)
def test_tail_rules_on_lvis(version, rule, tail):
    frequencies = ClassFrequencies.from_dataset(f"lvis_{version}_train")
    assert rule.mask(frequencies).sum() == tail
    assert rule.describe(frequencies).startswith(f"{tail} of {len(frequencies)} classes are tail")


def test_lambda_is_strict(frequencies):
    at_the_limit = frequencies.frequency[3].item()
    assert not TailRule(lambda_=at_the_limit).mask(frequencies)[3]
    assert TailRule(lambda_=at_the_limit + 1e-9).mask(frequencies)[3]


def test_tail_ratio(frequencies):
    tail = TailRule(groups="r").mask(frequencies)
    assert tail_ratio(frequencies, tail) == pytest.approx((1 + 9 + 10) / 632)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"lambda_": 0.1, "groups": "r"}, "one rule"),
        ({"lambda_": 0.0}, r"\(0, 1\]"),
        ({"lambda_": 1.5}, r"\(0, 1\]"),
        ({"max_image_count": -1}, ">= 0"),
        ({"groups": "x"}, "letters"),
        ({"lambda_": "abc"}, "must be a number"),
        ({"max_image_count": "many"}, "must be a number"),
    ],
)
def test_bad_tail_rules(arguments, message):
    with pytest.raises(ValueError, match=message):
        TailRule(**arguments)


def test_annotations_are_counted_once_until_they_change(dataset, annotations, tmp_path, monkeypatch):
    cache = str(tmp_path / "output")
    first = ClassFrequencies.from_dataset(dataset, cache)
    with monkeypatch.context() as m:
        m.setattr("eql_d2.data.frequencies.count_annotations", None)  # a second count would fail
        assert torch.equal(ClassFrequencies.from_dataset(dataset, cache).image_count, first.image_count)
    data = json.loads(annotations.read_text())
    data["annotations"].append({"id": 9, "image_id": 13, "category_id": 90, "bbox": [1, 2, 3, 4]})
    annotations.write_text(json.dumps(data))
    os.utime(annotations, ns=(1, 1))
    assert ClassFrequencies.from_dataset(dataset, cache).image_count.tolist() == [2, 1, 1]


def test_metadata_mapping_orders_the_categories(dataset, tmp_path):
    MetadataCatalog.get(dataset).set(thing_dataset_id_to_contiguous_id={3: 2, 7: 1, 90: 0})
    assert ClassFrequencies.from_dataset(dataset).image_count.tolist() == [0, 1, 2]


def test_letters_of_the_file_follow_the_same_order(dataset, annotations):
    data = json.loads(annotations.read_text())
    letters = {3: "f", 7: "c", 90: "r"}
    data["categories"] = [{**c, "frequency": letters[c["id"]]} for c in data["categories"]]
    annotations.write_text(json.dumps(data))
    assert ClassFrequencies.from_annotations(annotations).groups == "fcr"
    assert ClassFrequencies.from_annotations(annotations, {3: 2, 7: 0, 90: 1}).groups == "crf"


def test_metadata_is_the_last_source(annotations, dataset):
    annotations.unlink()
    with pytest.raises(FrequenciesNotFound, match="COUNTS_FILE"):
        ClassFrequencies.from_dataset(dataset)
    MetadataCatalog.get(dataset).set(class_image_count=[{"id": 2, "image_count": 5}, {"id": 1, "image_count": 200}])
    counts = ClassFrequencies.from_dataset(dataset)
    assert counts.image_count.tolist() == [200, 5]
    assert TailRule().mask(counts).tolist() == [False, True]
    with pytest.raises(ValueError, match="number of annotated images"):
        TailRule(lambda_=0.1).mask(counts)
    with pytest.raises(ValueError, match="instance counts"):
        counts.require_instance_count()


def test_unregistered_dataset():
    with pytest.raises(FrequenciesNotFound, match="not registered"):
        ClassFrequencies.from_dataset("no_such_dataset")


def test_save_and_load(frequencies, tmp_path):
    frequencies.save(tmp_path / "a" / "counts.json")
    loaded = ClassFrequencies.from_counts_file(tmp_path / "a" / "counts.json")
    assert loaded.groups == frequencies.groups and loaded.num_images == frequencies.num_images
    assert torch.equal(loaded.image_count, frequencies.image_count)
    assert torch.equal(loaded.instance_count, frequencies.instance_count)


def test_sum_of_datasets(frequencies):
    both = ClassFrequencies.sum([frequencies, frequencies])
    assert torch.equal(both.image_count, 2 * frequencies.image_count) and both.num_images == 2000
    assert both.groups == "rcccfff"
    with pytest.raises(ValueError, match="categories"):
        ClassFrequencies.sum([frequencies, ClassFrequencies([1, 2])])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"image_count": [2, -1]}, "image_count must be >= 0, but is -1 of category 1"),
        ({"image_count": [2, 2], "instance_count": [-3, 2]}, "instance_count must be >= 0, but is -3 of category 0"),
        ({"image_count": []}, "each category"),
        ({"image_count": [1, 2], "instance_count": [1]}, "instance_count"),
        ({"image_count": [0, 0], "num_images": 0}, "empty training set"),
        ({"image_count": [5], "num_images": 4}, "occurs in 5"),
        ({"image_count": [5], "groups": "x"}, "letters"),
    ],
)
def test_bad_counts(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassFrequencies(**arguments)


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not a JSON file"),
        ("[]", "lacks"),
        ('{"images": [], "annotations": []}', "categories"),
        ('{"images": [], "categories": [{"id": 1, "name": "a"}], "annotations": []}', "empty training set"),
    ],
)
def test_bad_annotation_files(tmp_path, content, message):
    path = tmp_path / "annotations.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        ClassFrequencies.from_annotations(path)


def test_config_with_another_number_of_classes(tiny_cfg):
    cfg = tiny_cfg("MODEL.ROI_HEADS.NUM_CLASSES", 8)
    with pytest.raises(ValueError, match="NUM_CLASSES is 8.*7 categories"):
        ClassFrequencies.from_config(cfg)


def test_a_model_whose_counts_lack_what_its_loss_trains_by_scores_but_does_not_train(tiny_cfg, tmp_path):
    from eql_d2.losses import build_cls_loss

    path = tmp_path / "image_counts.json"
    ClassFrequencies([5, 6, 7, 8, 90, 100, 200]).save(path)  # no instance counts
    node = "MODEL.ROI_BOX_HEAD.CLS_LOSS"
    loss = build_cls_loss(tiny_cfg(f"{node}.NAME", "ClassBalancedLoss", f"{node}.COUNTS_FILE", str(path)))
    assert loss.probs(torch.zeros(1, loss.num_logits)).shape == (1, 8)
    with pytest.raises(ValueError, match="ClassBalancedLoss needs class frequencies.*instance counts"):
        loss(torch.zeros(1, loss.num_logits), torch.tensor([0]))
