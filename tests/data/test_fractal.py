"""The box-counting dimension, against shapes of known dimension and against the definition as loops."""

import json
import math

import numpy as np
import pytest

from eql_d2 import ClassFrequencies
from eql_d2.data.fractal import fractal_dimensions


def dimension(x, y):
    x, y = np.broadcast_arrays(np.asarray(x, float), np.asarray(y, float))
    return fractal_dimensions(x.ravel(), y.ravel(), np.zeros(x.size, int), 1)[0]


STEPS = (np.arange(80) + 0.5) / 80


def test_a_line_a_square_and_a_point():
    assert dimension(STEPS, 0.3) == pytest.approx(1, abs=0.01)
    assert dimension(STEPS, STEPS) == pytest.approx(1, abs=0.1)
    assert dimension(STEPS[:, None], STEPS[None]) == pytest.approx(2, abs=0.01)
    assert dimension(np.full(500, 0.2), 0.7) == 1  # 0, clamped


def test_a_random_square_is_less_full_than_a_grid_and_more_than_a_line():
    x, y = np.random.default_rng(0).random((2, 4096))
    assert 1.8 < dimension(x, y) < 2


def test_against_loops():
    """N(G) cell by cell, numpy's polynomial fit."""
    rng = np.random.default_rng(1)
    category = rng.choice(4, 500, p=[0.7, 0.25, 0.04, 0.01])
    x, y = rng.beta(2, 5, 500), rng.random(500)
    found = fractal_dimensions(x, y, category, 5)
    for c in range(5):
        own = category == c
        grids = [g for g in range(1, 65) if g * g <= own.sum()]
        if own.sum() < 4:
            assert found[c] == 1
            continue
        filled = [
            len({(i, j) for i in range(g) for j in range(g)
                 if any(i / g <= a < (i + 1) / g and j / g <= b < (j + 1) / g for a, b in zip(x[own], y[own]))})
            for g in grids
        ]  # fmt: skip
        slope = np.polyfit(np.log(grids), np.log(filled), 1)[0]
        assert found[c] == pytest.approx(min(max(slope, 1), 2)), c


def test_few_objects_and_borders():
    assert fractal_dimensions(np.zeros(0), np.zeros(0), np.zeros(0, int), 3).tolist() == [1, 1, 1]
    assert dimension([0, 1, 0.2], [0, 1, 0.9]) == 1
    assert dimension([0, 1, 0, 1], [0, 0, 1, 1]) == pytest.approx(2)  # 4 of 4 cells, the border among them
    assert dimension([-3, 9, 0, 1], [0, 0, 1, 1]) == pytest.approx(2)


def an_annotation_file(path):
    images = [{"id": i, "file_name": f"{i}.png", "width": 20, "height": 10} for i in range(16)]
    boxes = [[20 * (i % 4) / 4 + 1, 10 * (i // 4) / 4 + 0.5, 2, 1] for i in range(16)]
    annotations = [{"id": i + 1, "image_id": i, "category_id": 1, "bbox": box} for i, box in enumerate(boxes)]
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def test_it_is_counted_saved_and_read(tmp_path):
    """4 x 4 centres over the image: full grids of 1 x 1, 2 x 2 and 4 x 4, and 9 of 9 cells of 3 x 3."""
    frequencies = ClassFrequencies.from_annotations(an_annotation_file(tmp_path / "train.json"))
    assert frequencies.fractal_dimension.tolist() == pytest.approx([2, 1])
    frequencies.save(tmp_path / "counts.json")
    again = ClassFrequencies.from_counts_file(tmp_path / "counts.json")
    assert again.require_fractal_dimension().tolist() == frequencies.fractal_dimension.tolist()


def test_without_it_the_cure_is_said():
    with pytest.raises(ValueError, match="eql-d2 counts"):
        ClassFrequencies([1, 2]).require_fractal_dimension()
    with pytest.raises(ValueError, match=r"a number in \[1, 2\] for each of the 2 categories"):
        ClassFrequencies([1, 2], fractal_dimension=[1.0, math.nan])
