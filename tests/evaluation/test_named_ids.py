"""Texts mean the ids that a person would take them for, and none where they may mean two."""

import numpy as np
import pytest

from eql_d2.evaluation.named_ids import category_names, image_names, numbers_of

IMAGES = [
    {"id": 7, "file_name": "train/a.b.jpg"},
    {"id": 8, "file_name": "val/a.b.jpg"},
    {"id": 9, "file_name": "000012.jpg"},
    {"id": 12, "coco_url": "http://images.cocodataset.org/val2017/000000000013.jpg"},
    {"id": 13},
]
CATEGORIES = [{"id": 3, "name": "Bow_(weapon)"}, {"id": 5, "name": "tv"}, {"id": 6, "name": "TV"}, {"id": 10}]
CATEGORIES += [{"id": 11, "name": "Hot_Dog"}, {"id": 12, "name": "hot Dog"}]


@pytest.mark.parametrize(
    "texts, expected",
    [
        (["7", "9", "12"], [7, 9, 12]),
        (["7.0", "13.0"], [7, 13]),
        (["train/a.b.jpg", "val\\\\a.b.jpg"], [7, None]),  # the first alone is a whole path
        (["a.b"], [None]),
        (["000012", "/data/000000000013.jpg"], [9, 12]),
        (["12", "dog", "nan", "inf", "1e400"], [12, None, None, None, None]),
    ],
)
def test_images(texts, expected):
    ids = np.array([image["id"] for image in IMAGES])
    numbers = numbers_of(np.array(texts), ids, image_names(IMAGES))
    assert [n if n in ids else None for n in numbers.tolist()] == expected


def test_a_number_is_an_id_before_it_is_a_file():
    images = [{"id": 1, "file_name": "2.jpg"}, {"id": 2, "file_name": "1.jpg"}]
    ids, names = np.array([1, 2]), image_names(images)
    assert numbers_of(np.array(["1", "2"]), ids, names).tolist() == [1, 2]
    assert numbers_of(np.array(["1.jpg", "2.jpg"]), ids, names).tolist() == [2, 1]


def test_categories():
    ids = np.array([category["id"] for category in CATEGORIES])
    texts = np.array(["bow (weapon)", "Bow_(weapon)", "tv", "TV", "10", "hot dog", "hot Dog"])
    numbers = numbers_of(texts, ids, category_names(CATEGORIES)).tolist()
    assert numbers[:5] == [3, 3, 5, 6, 10] and numbers[5] not in ids and numbers[6] == 12
