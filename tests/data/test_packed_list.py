import pickle

import pytest
from detectron2.data import DatasetFromList

from eql_d2.data.packed_list import Disposable, PackedList

ITEMS = [{"a": [1.5, 2]}, {}, {"b": "text" * 1000}]


def test_it_is_detectron2_s_serialized_list():
    ours = DatasetFromList(ITEMS, copy=False, serialize=PackedList)
    assert list(ours) == list(DatasetFromList(ITEMS, copy=False)) == ITEMS
    assert ours[1] is not ITEMS[1]


def test_a_disposable_list_is_let_go_of():
    items = Disposable(ITEMS)
    assert [*PackedList(items)] == ITEMS and items == [None] * len(ITEMS)


def test_it_goes_to_another_process_and_may_be_empty():
    assert [*pickle.loads(pickle.dumps(PackedList(ITEMS)))] == ITEMS
    assert len(PackedList([])) == 0
    with pytest.raises(IndexError):
        PackedList(ITEMS)[3]
