"""Groups, counts and frequency bins of categories."""

import pytest
from detectron2.data import Metadata

from eql_d2 import ClassFrequencies, TailRule
from eql_d2.evaluation.categories import BIN_ENDS, Categories
from eql_d2.evaluation.lvis_metrics import GroundTruth

COUNTS = ClassFrequencies([1, 10, 11, 400], [1, 30, 40, 900], num_images=1000)


def truth(letters=None, ids=(1, 2, 3, 4)):
    categories = [{"id": i, **({"frequency": letters[k]} if letters else {})} for k, i in enumerate(ids)]
    return GroundTruth.load({"images": [], "annotations": [], "categories": categories}, federated=False)


def categories(*args, mapping=None, names=None, **kwargs):
    metadata = Metadata()
    if mapping:
        metadata.thing_dataset_id_to_contiguous_id = mapping
    if names:
        metadata.thing_classes = names
    return Categories.of(truth(*args), metadata, **kwargs)


def test_groups_are_the_files_letters_or_else_those_of_the_counts():
    assert categories("rrcf", frequencies=COUNTS).groups == "rrcf"
    assert categories("ffff", frequencies=COUNTS).groups == "ffff"
    assert categories(None, frequencies=COUNTS).groups == "rrcf"
    assert categories(None).groups == "" and categories(None).members() == {}
    assert list(categories("rrff").members()) == ["r", "f"]


def test_counts_follow_the_models_order_of_categories():
    """Here the model's index 0 is the dataset's category 9."""
    mapping = {9: 0, 5: 1, 2: 2, 7: 3}
    result = categories(None, (2, 5, 7, 9), mapping=mapping, names=list("abcd"), frequencies=COUNTS, tail=TailRule())
    assert result.ids.tolist() == [2, 5, 7, 9] and result.index.tolist() == [2, 1, 3, 0]
    assert result.names == ["c", "b", "d", "a"]
    assert result.image_count.tolist() == [11, 10, 400, 1] and result.instance_count.tolist() == [40, 30, 900, 1]
    assert result.groups == "crfr" and result.tail.tolist() == [True, True, False, True]


def test_without_names_and_counts():
    result = categories("rrcf")
    assert result.names == ["1", "2", "3", "4"]
    assert result.image_count is result.tail is None and list(result.frequency_bins()) == []


def test_a_category_that_the_model_does_not_know():
    result = categories(None, mapping={1: 0, 2: 1, 3: 2}, frequencies=COUNTS)
    assert result.index.tolist() == [0, 1, 2, -1] and result.image_count.tolist() == [1, 10, 11, 0]
    assert result.groups == "rrcr"


def test_counts_of_another_set_are_an_error():
    with pytest.raises(ValueError, match="counts 1 categories.*up to 3"):
        categories(None, frequencies=ClassFrequencies([5]))


def test_bins_part_the_categories_and_nest_in_the_groups():
    counts = ClassFrequencies([0, 1, 2, 3, 4, 10, 11, 100, 101, 9999, 50_000])
    result = categories(None, tuple(range(1, 12)), frequencies=counts)
    bins = result.frequency_bins()
    assert sum(members.astype(int) for _, _, members in bins).tolist() == [1] * 11
    for low, high, members in bins:
        assert ((low <= result.image_count[members]) & (result.image_count[members] <= high)).all()
        assert len({result.groups[k] for k in members.nonzero()[0]}) == 1
    assert [(low, high) for low, high, _ in bins][:3] == [(0, 0), (1, 1), (2, 3)]
    assert bins[-1][:2] == (BIN_ENDS[-1] + 1, 50_000)
