import itertools
from collections import Counter

import pytest
import torch
from detectron2.utils import comm

from eql_d2.data.samplers import BLOCK, ClassAwareSampler


def images_of(*categories_of_image):
    return [{"annotations": [{"category_id": c} for c in categories]} for categories in categories_of_image]


IMAGES = images_of([0], [0, 0], [0, 1], [0], [2, 5], [])  # category 0: four images, 1: one, 2 and 5: the same one


def draw(sampler, number):
    return list(itertools.islice(sampler, number))


def test_categories_alike_and_their_images_alike():
    n = 20 * BLOCK
    counts = Counter(draw(ClassAwareSampler(IMAGES, seed=0), n))
    share = {0: 1 / 16, 1: 1 / 16, 2: 1 / 16 + 1 / 4, 3: 1 / 16, 4: 1 / 2}
    assert counts.keys() == share.keys()  # never the image without objects
    for image, p in share.items():
        assert abs(counts[image] / n - p) < 4 * (p * (1 - p) / n) ** 0.5


def test_against_a_loop():
    """The definition, with the same draws: a category, then its image at that share of its list."""
    generator = torch.Generator()
    generator.manual_seed(7)
    categories = torch.randint(4, (BLOCK,), generator=generator).tolist()
    shares = torch.rand(BLOCK, generator=generator, dtype=torch.float64).tolist()
    lists = [[0, 1, 2, 3], [2], [4], [4]]
    expected = [lists[c][int(share * len(lists[c]))] for c, share in zip(categories, shares)]
    assert draw(ClassAwareSampler(IMAGES, seed=7), BLOCK) == expected


def test_a_seed_fixes_the_stream_and_each_pass_starts_anew():
    sampler = ClassAwareSampler(IMAGES, seed=3)
    stream = draw(sampler, 3000)
    assert stream == draw(sampler, 3000) == draw(ClassAwareSampler(IMAGES, seed=3), 3000)
    assert stream != draw(ClassAwareSampler(IMAGES, seed=4), 3000)
    assert draw(ClassAwareSampler(IMAGES), 10) != draw(ClassAwareSampler(IMAGES), 10)


def test_ranks_share_one_stream(monkeypatch):
    whole = draw(ClassAwareSampler(IMAGES, seed=3), 3000)
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(comm, "get_rank", lambda: rank)
        assert draw(ClassAwareSampler(IMAGES, seed=3), 1000) == whole[rank::3]


def test_crowd_regions_are_no_objects():
    images = [*images_of([1]), {"annotations": [{"category_id": 4, "iscrowd": 1}]}]
    assert set(draw(ClassAwareSampler(images, seed=0), 100)) == {0}
    with pytest.raises(ValueError, match="none of the 1 images has an annotation"):
        ClassAwareSampler(images[1:])
