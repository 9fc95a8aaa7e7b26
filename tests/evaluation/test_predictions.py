"""What predictions are written as."""

import json

import numpy as np
import pytest

from eql_d2.evaluation.predictions import ImagePredictions, write_json

ORDINARY = [1.0, 0.3, 5e-05, 300.123, 1e-4, 123456789.0]
ODD = [1e-5, -0.0, 1e16, 1.5e300, -1e-300, float("nan"), float("inf")]


def predictions(image_id, values, *, masks=None):
    n = len(values)
    boxes = np.arange(4 * n, dtype=np.float32).reshape(n, 4) / 7
    boxes[:, 0] = values
    return ImagePredictions(image_id, np.arange(n), boxes, np.float32(values), masks and [48, 64], masks)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("values", [ORDINARY, *([value] for value in ODD), []], ids=str)
def test_results_are_written_as_json_dump_writes_them(values, dtype, tmp_path):
    rng = np.random.default_rng(0)
    images = [
        predictions(7, values),
        predictions('a "text" id', values, masks=[f'\\{i}"`o' for i in range(len(values))]),
        predictions(8, rng.uniform(1e-4, 1e3, 50)),
    ]
    images = [p._replace(bbox=p.bbox.astype(dtype), score=p.score.astype(dtype)) for p in images]
    write_json(images, str(tmp_path / "results.json"))
    assert (tmp_path / "results.json").read_text() == json.dumps([row for p in images for row in p.unpack()])
