"""Counts of a training set for an evaluated file, from annotations, from a counts file, and LVIS's own."""

import json

import numpy as np
import pytest

from eql_d2.data.frequencies import SHIPPED_COUNTS, ClassFrequencies
from eql_d2.errors import InputError
from eql_d2.evaluation.training_counts import shipped_counts, training_counts


def write(path, content):
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def annotations(tmp_path):
    """Category 3 in two images, 7 in one, 9 in none."""
    objects = [(1, 3), (1, 3), (2, 3), (2, 7)]
    return write(
        tmp_path / "train.json",
        {
            "images": [{"id": i, "file_name": f"{i}.jpg", "height": 9, "width": 9} for i in (1, 2)],
            "categories": [{"id": k, "name": str(k)} for k in (9, 3, 7)],
            "annotations": [
                {"id": i + 1, "image_id": image, "category_id": k, "bbox": [0, 0, 5, 5], "area": 25}
                for i, (image, k) in enumerate(objects)
            ],
        },
    )


def test_annotations_may_have_more_and_fewer_categories(annotations):
    counts = training_counts(annotations, [1, 3, 9])
    assert counts.image_count.tolist() == [0, 2, 0] and counts.instance_count.tolist() == [0, 3, 0]
    assert counts.groups == "rrr" and counts.source == str(annotations)


def test_a_counts_file_says_the_same(annotations, tmp_path):
    ClassFrequencies.from_annotations(annotations).save(tmp_path / "counts.json")
    counts = training_counts(tmp_path / "counts.json", [3, 7, 9])
    assert counts.image_count.tolist() == [2, 1, 0] and counts.instance_count.tolist() == [3, 1, 0]
    with pytest.raises(InputError, match="counts 3 categories, the evaluated annotations have 2"):
        training_counts(tmp_path / "counts.json", [3, 7])


def test_other_categories_are_an_error(annotations):
    with pytest.raises(InputError, match="none of the evaluated category ids"):
        training_counts(annotations, [11, 12])


@pytest.mark.parametrize("name", sorted(SHIPPED_COUNTS))
def test_lvis_is_known_by_its_ids_and_letters(name):
    expected = ClassFrequencies.from_dataset(name)
    ids = list(range(1, len(expected) + 1))
    counts = shipped_counts(ids, expected.groups)
    np.testing.assert_array_equal(counts.image_count, expected.image_count)
    assert shipped_counts(ids, expected.groups[::-1]) is None
    assert shipped_counts(ids[:-1], expected.groups[:-1]) is None
