"""What passes the arrays has nothing to be said about by the functions that look at one object at a time."""

import copy
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eql_d2.data.annotations import annotation_problem, is_id, without_extent
from eql_d2.data.clipping import reaches_out
from eql_d2.data.screening import places_to_look_at
from tests.annotation_cases import HEIGHT, WIDTH, valid

EDGES = [-2, -1.01, -1, 0, 1, HEIGHT + 1, HEIGHT + 1.01, WIDTH + 1, WIDTH + 1.01, 70, 1e308, 2**63, 10**400]
ODD = [None, True, "7", "", [], {}, [[]], [None], math.nan, math.inf, -math.inf, 0.5, 10**30]
VALUES = st.sampled_from([*EDGES, *ODD, [1, 2, 3, 4], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6], [1, 2]], {"counts": "0"}])
KEYS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")


def parts(data):
    return data["annotations"], *({e["id"]: e for e in data[part]} for part in ("images", "categories"))


def is_right(annotation, images, categories) -> bool:
    if not (isinstance(annotation, dict) and is_id(annotation.get("id"))):
        return False
    if annotation_problem(annotation, images, categories) or annotation["image_id"] not in images:
        return False
    return not without_extent(annotation) and not reaches_out(annotation, WIDTH, HEIGHT)


@given(st.data())
def test_what_passes_is_right(data):
    annotations, images, categories = parts(valid(lvis=False))
    for _ in range(data.draw(st.integers(1, 2))):
        annotation, value = data.draw(st.sampled_from(annotations)), copy.deepcopy(data.draw(VALUES))
        key = data.draw(st.sampled_from([*KEYS, "a coordinate", "an edge", "another key"]))
        if key == "a coordinate" and isinstance(annotation["segmentation"], list) and annotation["segmentation"]:
            annotation["segmentation"][0] = [*range(7), value]
        elif key == "an edge":
            annotation["bbox"] = [1, 2, 3, 4]
            annotation["bbox"][data.draw(st.integers(0, 3))] = value
        else:
            annotation[key] = value
    looked_at = places_to_look_at(annotations, images, categories)
    for place, annotation in enumerate(annotations):
        assert place in looked_at or is_right(annotation, images, categories)


@pytest.mark.parametrize("place", [0, 4])
@pytest.mark.parametrize(
    "change",
    [
        {"segmentation": [[5, 5, 9, 5, 9, HEIGHT + 1.5]]},
        {"segmentation": [[5, 5, 9, 5, 9, 9], [5, 5, 9, 9]]},
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}},
        {"bbox": [50, 5, 15.5, 5]},
        {"bbox": [5, 5, 0, 5]},
        {"area": -1},
        {"image_id": 77},
    ],
)
def test_one_is_looked_at_alone(change, place):
    annotations, images, categories = parts(valid(lvis=True))
    assert places_to_look_at(annotations, images, categories) == []
    annotations[place].update(change)
    assert places_to_look_at(annotations, images, categories) == [place]


@pytest.mark.parametrize("ids", [[1, 1], [1, "2"], [1, 2**63], [1, True], [1]])
def test_ids_that_are_none_of_their_own(ids):
    annotations, images, categories = parts(valid(lvis=False))
    annotations = annotations[:2]
    for annotation, i in zip(annotations, [*ids, None], strict=False):
        annotation["id"] = i
    assert places_to_look_at(annotations, images, categories) == [0, 1]
