"""Reading results in pieces gives what reading them at once gives."""

import gzip
import json

import numpy as np
import pytest

from eql_d2.errors import InputError
from eql_d2.evaluation.lvis_metrics import Detections
from eql_d2.evaluation.packed_masks import PackedMasks
from eql_d2.evaluation.results_file import pieces, read_results


@pytest.fixture
def write(tmp_path):
    def write(content, **how):
        path = tmp_path / "results.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content, **how))
        return path

    return write


@pytest.mark.parametrize("how", [{}, {"indent": 1}, {"separators": (",", ":")}])
@pytest.mark.parametrize("piece", [1, 7, 100, 4096, 1 << 24])
def test_pieces(cases, write, piece, how):
    _, results = cases.random_case(0, num_images=2, num_detections=10, masks=True)
    results[3]["caption"] = 'a "},{" in a text, ] and }, { too'
    results[4]["parts"] = [{"a": 1}, {"b": {"c": 2}}, {}]
    assert [r for some in pieces(write(results, **how), piece) for r in some] == results


@pytest.mark.parametrize("piece", [300, 4096, 1 << 24])
@pytest.mark.parametrize("end", ["", "\n", "\r\n\r\n"])
def test_json_lines(cases, write, piece, end):
    _, results = cases.random_case(0, num_images=2, num_detections=10, masks=True)
    results[3]["caption"] = 'a "},{" in a text, ] and }, { too'
    text = (end or "\n").join(map(json.dumps, results)) + end
    assert [r for some in pieces(write(text), piece) for r in some] == results
    with pytest.raises(InputError, match="is cut off"):
        list(pieces(write(text.rstrip()[:-5]), piece))


def test_compressed_and_with_a_byte_order_mark(write):
    path = write("\ufeff" + json.dumps([GOOD] * 9))
    assert list(pieces(path, 50))[0][0] == GOOD
    whole = gzip.compress(path.read_bytes())
    for content, problem in ((whole, None), (whole[:-9], "cut off")):
        path.write_bytes(content)
        if problem is None:
            assert sum(map(len, pieces(path, 50))) == 9
        else:
            with pytest.raises(InputError, match=problem):
                list(pieces(path, 50))


def test_texts_for_numbers(write):
    """Ids stay texts, all of them, since only the dataset knows whose they are; boxes and scores become numbers."""
    texts = {"image_id": "a", "category_id": 1, "score": "0.25", "bbox": ["0", "1", "2", "3.5"]}
    read = read_results(write([GOOD] * 5 + [texts]), "bbox", 100)
    assert read.image_id.tolist() == ["1"] * 5 + ["a"] and read.category_id.tolist() == [1] * 6
    assert read.score[-1] == 0.25 and read.box[-1].tolist() == [0, 1, 2, 3.5]


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_arrays(cases, write, iou_type):
    _, results = cases.random_case(0, num_images=3, masks=True)
    read, expected = read_results(write(results), iou_type, 1000), Detections.from_results(results, iou_type)
    for name in ("image_id", "category_id", "score", "box"):
        np.testing.assert_array_equal(getattr(read, name), getattr(expected, name))
    for mask, same in zip(read.segmentation or (), expected.segmentation or (), strict=True):
        assert mask == same or mask == same | {"counts": same["counts"].encode()}


def test_an_empty_list_and_whole_numbers_as_floats(write):
    assert len(read_results(write([]), "bbox").score) == 0
    read = read_results(write([{"image_id": 3.0, "category_id": 1.0, "score": 1, "bbox": [0, 0, 1, 1]}]), "bbox")
    assert read.image_id.dtype == np.int64 and read.image_id.tolist() == [3]


GOOD = {"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [0, 0, 1, 1]}


@pytest.mark.parametrize(
    "content, message",
    [
        ({"annotations": []}, "must hold a JSON list of detections, and starts with '{"),
        (json.dumps([GOOD] * 9)[:-20], "is not a JSON list of detections, or is cut off"),
        ("[1, 2]", "a detection must be an object, got 1"),
        ([GOOD, {**GOOD, "image_id": None}], "whole number as its `image_id`"),
        ([{**GOOD, "image_id": True}], "whole number as its `image_id`"),
        ([{**GOOD, "score": [0.5]}], "finite number as its `score`"),
        ([{**GOOD, "score": "high"}], "finite number as its `score`"),
        ({"bbox": [GOOD]}, "write the list of the detections alone"),
        ([GOOD, {**GOOD, "category_id": 1.5}], "whole number as its `category_id`"),
        ([{k: v for k, v in GOOD.items() if k != "score"}], "finite number as its `score`"),
        ([GOOD, {**GOOD, "bbox": [0, 0, 1]}], "`bbox` of four finite numbers"),
        ([GOOD, {k: v for k, v in GOOD.items() if k != "bbox"}], "needs 'bbox' in every detection"),
    ],
)
def test_errors(write, content, message):
    with pytest.raises(InputError, match=message):
        read_results(write(content), "bbox")


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        read_results(tmp_path / "no.json", "bbox")


def test_what_no_detector_may_give_is_named(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('[{"image_id": 1, "category_id": 1, "score": NaN, "bbox": [1, 2, 3, 4]}]')
    with pytest.raises(InputError, match="it holds NaN"):
        read_results(path, "bbox")
    path.write_text('[{"image_id": 1, "category_id": 1, "score": 1, "segmentation": {"size": [1, 1], "counts": "1"}}]')
    with pytest.raises(InputError, match="needs 'bbox' .*--iou-type segm"):
        read_results(path, "bbox")


def test_compressed_masks_are_packed_and_the_same(tmp_path):
    """Polygons stay lists; of pieces of both kinds all become lists."""
    results = [
        {"image_id": i, "category_id": 1, "score": 0.5, "segmentation": {"size": [10 + i, 20], "counts": "0" * i + "4"}}
        for i in range(9)
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    for piece in (100, 1 << 24):
        masks = read_results(path, "segm", piece).segmentation
        assert isinstance(masks, PackedMasks)
        expected = [r["segmentation"] | {"counts": r["segmentation"]["counts"].encode()} for r in results]
        assert list(masks) == expected
        keep = np.arange(9) % 3 == 1
        assert list(masks.select(keep)) == expected[1::3] and list(masks.select(keep).select(keep[:3])) == [expected[4]]
    results[4]["segmentation"] = [[1.0, 1, 5, 1, 5, 5]]
    path.write_text(json.dumps(results))
    for piece in (100, 1 << 24):
        masks = read_results(path, "segm", piece).segmentation
        assert isinstance(masks, list) and masks[4] == [[1.0, 1, 5, 1, 5, 5]] and masks[2]["size"] == [12, 20]


@pytest.mark.parametrize("mask", [{"counts": "4"}, {"size": [3], "counts": "4"}, {"size": [3, 3]}, "4", 4])
def test_what_is_no_mask_is_named(tmp_path, mask):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{"image_id": 1, "category_id": 1, "score": 1, "segmentation": mask}]))
    with pytest.raises(InputError, match="must be polygons, or an RLE"):
        read_results(path, "segm")
