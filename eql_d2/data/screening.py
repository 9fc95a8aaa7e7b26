"""Which annotations of a file need a closer look: found by arrays, since a million objects have 80 million coordinates.

Of what passes here, :mod:`eql_d2.data.annotations` and :mod:`eql_d2.data.clipping`, which look at one object at a time
and say what is wrong with it, would say nothing. What does not pass may still be right.
"""

from itertools import chain, compress

import numpy as np

from eql_d2.data.clipping import SLACK

AT_ONCE = 4000  # annotations, whose coordinates fit into the cache
NUMBERS = {int, float}
NOT_LISTED = (-np.inf, -np.inf)  # the size of such an image: everything reaches out of it
ODD = (AttributeError, KeyError, OverflowError, TypeError, ValueError)  # what odd entries give in the place of arrays


def places_to_look_at(annotations: list, images: dict[int, dict], categories: dict[int, dict]) -> list[int]:
    """The places of all annotations but those that are surely as the format has them, and inside of their image.

    Args:
        annotations: as in a file: each may be anything.
        images: by id, without problems; ``categories`` too.
    """
    listed = {i: row for row, i in enumerate(images)}
    sizes = np.array([*((image["width"], image["height"]) for image in images.values()), NOT_LISTED], dtype=float)
    places: list[int] = []
    ids = []
    for start in range(0, len(annotations), AT_ONCE):
        some = annotations[start : start + AT_ONCE]
        try:
            ids.append(_ids_of(some))
            limits = sizes[[listed.get(annotation["image_id"], -1) for annotation in some]] + SLACK
            with np.errstate(all="ignore"):
                passes = _pass(some, limits, categories)
        except ODD:
            passes = np.zeros(len(some), dtype=bool)
        places += (start + np.flatnonzero(~passes)).tolist()
    have_ids = len(np.unique(np.concatenate(ids))) == len(annotations) if ids else not annotations
    return places if have_ids else list(range(len(annotations)))


def _ids_of(annotations: list[dict]) -> np.ndarray:
    """Their ids, or one of ODD where one has none that fits into 64 bits."""
    ids = [annotation["id"] for annotation in annotations]
    _require({*map(type, ids)} <= {int})
    return np.array(ids, dtype=np.int64)


def _pass(annotations: list[dict], limits: np.ndarray, categories: dict[int, dict]) -> np.ndarray:
    """A bool for each, or one of ODD where something is so odd that each has to be looked at.

    Args:
        limits: of each, how far it may reach to the right and down.
    """
    category_ids = [annotation["category_id"] for annotation in annotations]
    image_ids = [annotation["image_id"] for annotation in annotations]
    areas = [annotation.get("area", 0) for annotation in annotations]
    boxes = [annotation["bbox"] for annotation in annotations]
    _require({*map(type, category_ids), *map(type, image_ids)} <= {int} and {*category_ids} <= categories.keys())
    _require({annotation.get("iscrowd", 0) for annotation in annotations} <= {0, 1})
    _require({*map(type, areas), *map(type, chain.from_iterable(boxes))} <= NUMBERS and {*map(type, boxes)} <= {list})
    area, box = np.array(areas, dtype=float), np.array(boxes, dtype=float).reshape(-1, 4)
    inside = (box[:, :2] >= -SLACK) & (box[:, :2] + box[:, 2:] <= limits) & (box[:, 2:] > 0)
    passes = inside.all(axis=1) & (area >= 0) & np.isfinite(area)
    segmentations = [annotation.get("segmentation") or [] for annotation in annotations]
    passes &= [type(segmentation) is list for segmentation in segmentations]  # no RLE
    polygons = [s if type(s) is list else [] for s in segmentations]
    owner = np.repeat(np.arange(len(polygons)), [*map(len, polygons)])
    if len(owner):
        passes[owner[~_lie_inside([*chain.from_iterable(polygons)], limits[owner])]] = False
    return passes


def _lie_inside(polygons: list, limits: np.ndarray) -> np.ndarray:
    """Of each polygon x, y, x, y, ..., whether it has three corners or more, and none beyond its (n, 2) limits."""
    _require({*map(type, polygons)} <= {list})
    lengths = np.array([*map(len, polygons)])
    passes = (lengths >= 6) & (lengths % 2 == 0)
    coordinates = np.array([*chain.from_iterable(compress(polygons, passes))])
    _require(coordinates.ndim == 1 and coordinates.dtype.kind in "fi")  # no texts, null, or numbers beyond 64 bits
    if len(coordinates):
        corners = coordinates.reshape(-1, 2)
        starts = np.cumsum(lengths[passes] // 2) - lengths[passes] // 2
        lowest, highest = (f.reduceat(corners, starts) for f in (np.minimum, np.maximum))
        passes[passes] = ((lowest >= -SLACK) & (highest <= limits[passes])).all(axis=1)
    return passes


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError
