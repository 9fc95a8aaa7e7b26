"""`eql-d2 demo`: which images are read, which detections are drawn, and what is said about the others."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from eql_d2.cli import main
from eql_d2.cli.demo import describe
from eql_d2.engine import load_config
from eql_d2.engine.demo import category_names, choose, draw, image_files, output_names

ROOT = Path(__file__).parents[2]


def detections(*rows):
    """Instances of (x0, score, class)."""
    instances = Instances((50, 200))
    instances.pred_boxes = Boxes(torch.tensor([[x, 5.0, x + 20, 25.0] for x, _, _ in rows]).reshape(-1, 4))
    instances.scores = torch.tensor([score for _, score, _ in rows])
    instances.pred_classes = torch.tensor([category for _, _, category in rows], dtype=torch.int64)
    return instances


def test_one_category_a_place_above_the_threshold():
    chosen = choose(detections((0, 0.3, 1), (1, 0.6, 2), (100, 0.2, 3), (150, 0.05, 4)), 0.1)
    assert chosen.pred_classes.tolist() == [2, 3]
    assert len(choose(detections((0, 0.3, 1)), 0.5)) == len(choose(detections(), 0.5)) == 0


def test_what_is_said_of_an_image():
    found = detections((0, 0.3, 1), (100, 0.6, 2))
    assert describe(found, 2, "abc") == "2 of 2 detections drawn, the best score is 0.6 (c)"
    assert describe(found, 0, "abc").endswith("0.6 (c): --confidence-threshold 0.59 draws it")
    assert describe(detections(), 0, "abc") == "0 of 0 detections drawn: the model found nothing"


def test_a_picture_has_boxes_and_names_of_any_text():
    image = np.zeros((50, 200, 3), dtype=np.uint8)
    nothing = draw(image, detections(), ["$a$ $b"])
    picture = draw(image, detections((20, 0.6, 0)), ["$a$ $b"])
    assert picture.shape == nothing.shape == (160, 640, 3)  # enlarged, so that labels can be read
    assert nothing.max() == 0 and picture.max() > 0


def test_files_folders_and_patterns(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt", "sub/c.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    a, b, c, notes = (str(tmp_path / n) for n in ("a.JPG", "b.png", "sub/c.jpeg", "notes.txt"))
    assert image_files([str(tmp_path)]) == [a, b]
    assert image_files([b, str(tmp_path / "*"), str(tmp_path / "**" / "*.jpeg")]) == [b, a, c]
    assert image_files([notes]) == [notes]
    for nothing in (tmp_path / "none.png", tmp_path / "*.gif"):
        with pytest.raises(ValueError, match="is no image file, folder"):
            image_files([str(nothing)])
    assert output_names(["x/1.jpg", "y/1.png", "2.png"]) == ["1.png", "1_2.png", "2.png"]


@pytest.mark.parametrize(
    "config, K, name",
    [
        ("LVISv1/eql_mask_rcnn_R_50_FPN_1x.yaml", 1203, "aerosol_can"),
        ("LVISv0.5/eql_mask_rcnn_R_50_FPN_1x.yaml", 1230, "acorn"),
        ("COCO/eql_mask_rcnn_R_50_FPN_1x.yaml", 80, "person"),
    ],
)
def test_names_of_categories_need_no_annotations(config, K, name):
    names = category_names(load_config(ROOT / "configs" / config))
    assert len(names) == K and names[0] == name


def test_names_of_another_number_of_categories_are_none(tiny_cfg):
    assert category_names(tiny_cfg("DATASETS.TEST", ("lvis_v1_val",), "DATASETS.TRAIN", ("no_such_set",))) is None


@pytest.fixture
def run_tool(tiny_cfg, counts_file, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(tiny_cfg("MODEL.ROI_HEADS.NAME", "EQLROIHeads", "DATASETS.TEST", ("lvis_v1_val",)).dump())

    def run(*inputs, threshold="0.001"):
        arguments = ["--config-file", str(config), "--input", *map(str, inputs), "--output", str(tmp_path / "drawn")]
        return main(["demo", *arguments, "--confidence-threshold", threshold])

    return run


def test_the_tool_draws_what_it_can_read(run_tool, tmp_path, capsys):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.fromarray(np.full((64, 96, 3), 90, dtype=np.uint8)).save(good)
    bad.write_bytes(good.read_bytes()[:60])
    assert run_tool(bad, good) == 0
    out, err = capsys.readouterr()
    assert f"skipped {bad}" in err
    assert "no dataset of the config has names" in out  # lvis_v1_val has 1203, the model 7
    assert out.splitlines()[-2].endswith("of score >= 0.001 in 1 of 2 images")
    assert [p.name for p in (tmp_path / "drawn").iterdir()] == ["good.png"]
    # Random weights are sure of nothing; what would be seen is said.
    assert run_tool(good, threshold="0.99") == 0
    assert ": 0 of " in (out := capsys.readouterr().out) and "draws it" in out


def test_the_tool_fails_if_nothing_can_be_read(run_tool, tmp_path, capsys):
    (tmp_path / "bad.png").write_text("no image")
    assert run_tool(tmp_path / "bad.png") == 1
    assert "error: none of 1 images could be read" in capsys.readouterr().err
    assert run_tool(tmp_path / "missing.png") == 1
