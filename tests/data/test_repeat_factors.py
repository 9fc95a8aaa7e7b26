"""Samplers that repeat or weigh images: factors against the papers' formulas, streams against their expectation."""

import itertools
import math
from collections import Counter

import pytest
import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler

from eql_d2 import ClassFrequencies
from eql_d2.data.exposure import Exposure, expected_draws
from eql_d2.data.frequencies import SHIPPED_COUNTS
from eql_d2.data.samplers import (
    ClassAwareSampler,
    ExponentialRepeatFactorSampler,
    InstanceAwareRepeatFactorSampler,
    MultiDatasetSampler,
    mean_frequency,
)


def images_of(*categories_of_image):
    return [{"annotations": [{"category_id": c} for c in categories]} for categories in categories_of_image]


# Category 0: 8 images and 8 objects; 1: 2 images and 6 objects; 2: one of each; one image without objects.
IMAGES = images_of(*[[0]] * 7, [0, 1], [1] * 5, [2], [])
CROWD = {"annotations": [{"category_id": 2}, {"category_id": 7, "iscrowd": 1}]}


def draw(sampler, number):
    return list(itertools.islice(sampler, number))


def test_irfs_by_hand():
    sampler = InstanceAwareRepeatFactorSampler(IMAGES, seed=0, threshold=0.5)
    r = {
        0: max(1, math.sqrt(0.5 / math.sqrt(8 / 11 * 8 / 15))),
        1: math.sqrt(0.5 / math.sqrt(2 / 11 * 6 / 15)),
        2: math.sqrt(0.5 / math.sqrt(1 / 11 * 1 / 15)),
    }
    assert sampler.category_factor == pytest.approx(r) and r[2] > r[1] > 1 == r[0]
    expected = [r[0]] * 7 + [r[1], r[1], r[2], 1]
    assert expected_draws(sampler, len(IMAGES)).tolist() == pytest.approx(expected)


def test_eirfs_by_hand():
    sampler = ExponentialRepeatFactorSampler(IMAGES, seed=0, threshold=0.05, alpha=1.5)
    r = [math.exp(1.5 * math.sqrt(0.05 / math.sqrt(f))) for f in (8 / 11 * 8 / 15, 2 / 11 * 6 / 15, 1 / 11 * 1 / 15)]
    assert list(sampler.category_factor.values()) == pytest.approx(r) and r[2] > r[1] > r[0] > 1
    assert expected_draws(sampler, 11)[7] == pytest.approx(r[1])


def test_with_one_object_an_image_irfs_is_rfs():
    images = images_of(*[[c] for c in [0] * 30 + [1] * 5 + [2]])
    rfs = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(images, 0.3)
    irfs = InstanceAwareRepeatFactorSampler(images, seed=0, threshold=0.3)
    torch.testing.assert_close(expected_draws(irfs, len(images)).float(), rfs)


@pytest.mark.parametrize("kwargs", [{"threshold": 0.0}, {"threshold": 0.4, "alpha": 0.0}])
def test_nothing_is_repeated_at_zero(kwargs):
    sampler_class = ExponentialRepeatFactorSampler if "alpha" in kwargs else InstanceAwareRepeatFactorSampler
    assert (expected_draws(sampler_class(IMAGES, seed=0, **kwargs), 11) == 1).all()


def test_crowd_regions_are_no_objects():
    sampler = InstanceAwareRepeatFactorSampler([*IMAGES, CROWD], seed=0, threshold=0.5)
    assert sampler.category_factor.keys() == {0, 1, 2}


def test_lvis_v1s_own_counts_give_the_papers_factors():
    """Means of rare categories at t = 0.001, on the 99,388 images with objects."""
    counts = ClassFrequencies.from_counts_file(SHIPPED_COUNTS["lvis_v1_train"])
    images = dict(enumerate(counts.image_count.tolist()))
    frequency = mean_frequency(images, dict(enumerate(counts.instance_count.tolist())), counts.num_images)
    rare = [c for c, letter in enumerate(counts.groups) if letter == "r"]
    rfs = [max(1, math.sqrt(1e-3 * counts.num_images / images[c])) for c in rare]
    irfs = [max(1, math.sqrt(1e-3 / frequency[c])) for c in rare]
    assert sum(rfs) / len(rare) == pytest.approx(5.87, abs=0.005)
    assert sum(irfs) / len(rare) == pytest.approx(9.66, abs=0.005)


SOURCES = [{**image, "dataset_source": int(i >= 4)} for i, image in enumerate(IMAGES)]
SAMPLERS = {
    "IRFS": lambda: InstanceAwareRepeatFactorSampler(IMAGES, seed=3, threshold=0.5),
    "E-IRFS": lambda: ExponentialRepeatFactorSampler(IMAGES, seed=3, threshold=0.05),
    "class aware": lambda: ClassAwareSampler(IMAGES, seed=3),
    "datasets": lambda: MultiDatasetSampler(SOURCES, 3, ratio=[3, 1], use_rfs=[False, True], threshold=0.5),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_100_000_draws_are_as_expected(name):
    sampler, n = SAMPLERS[name](), 100_000
    share = expected_draws(sampler, len(IMAGES))
    share = (share / share.sum()).tolist()
    counts = Counter(draw(sampler, n))
    for image, p in enumerate(share):  # repeat factors vary less than the independent draws of this deviation
        assert abs(counts[image] - n * p) <= 4.5 * math.sqrt(n * p * (1 - p)), image
    assert draw(SAMPLERS[name](), 500) == draw(sampler, 500)


def test_datasets_are_drawn_by_their_ratio_whatever_their_size():
    sampler = MultiDatasetSampler(SOURCES, 0, ratio=[3, 1])
    assert expected_draws(sampler, 11).tolist() == pytest.approx([11 * 3 / 4 / 4] * 4 + [11 / 4 / 7] * 7)
    assert expected_draws(MultiDatasetSampler(SOURCES, 0), 11)[:4].sum() == pytest.approx(5.5)
    never = draw(MultiDatasetSampler(SOURCES, 0, ratio=[0, 1]), 1000)
    assert min(never) == 4


def test_ranks_share_the_stream_of_datasets(monkeypatch):
    whole = draw(SAMPLERS["datasets"](), 300)
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        assert draw(SAMPLERS["datasets"](), 100) == whole[rank::3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: InstanceAwareRepeatFactorSampler(IMAGES, 0, threshold=-1), "REPEAT_THRESHOLD"),
        (lambda: ExponentialRepeatFactorSampler(IMAGES, 0, threshold=0.1, alpha=-1), "REPEAT_ALPHA"),
        (lambda: ExponentialRepeatFactorSampler(IMAGES, 0, threshold=1e9), "lower DATALOADER.REPEAT_THRESHOLD"),
        (lambda: MultiDatasetSampler(SOURCES, 0, ratio=[1, 2, 3]), r"each of the 2 datasets of DATASETS.TRAIN"),
        (lambda: MultiDatasetSampler(SOURCES, 0, ratio=[0, 0]), "not all 0"),
        (lambda: MultiDatasetSampler(SOURCES, 0, use_rfs=[True]), "USE_RFS"),
        (lambda: MultiDatasetSampler(IMAGES, 0), "no 'dataset_source'"),
        (lambda: expected_draws(torch.utils.data.SequentialSampler(IMAGES), 3), "SequentialSampler"),
    ],
)
def test_wrong_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_a_sampler_shows():
    """Against a count of the epochs themselves."""
    sampler = InstanceAwareRepeatFactorSampler(IMAGES, seed=1, threshold=0.5)
    shown = Exposure.of(sampler, IMAGES, num_classes=4)
    assert shown.epoch == pytest.approx(float(expected_draws(sampler, 11).sum()))
    objects, images = Counter(), Counter()
    epochs, generator = 4000, torch.Generator().manual_seed(0)
    for index in itertools.chain.from_iterable(sampler._get_epoch_indices(generator).tolist() for _ in range(epochs)):
        categories = [a["category_id"] for a in IMAGES[index]["annotations"]]
        objects.update(categories)
        images.update(set(categories))
    for category in range(4):
        assert shown.objects[category].item() == pytest.approx(objects[category] / epochs, rel=0.03)
        assert shown.images[category].item() == pytest.approx(images[category] / epochs, rel=0.03)
    none = Exposure.of(TrainingSampler(11, seed=0), IMAGES, num_classes=4)
    assert none.images.tolist() == [8, 2, 1, 0] and none.objects.tolist() == [8, 6, 1, 0] and none.epoch == 11
