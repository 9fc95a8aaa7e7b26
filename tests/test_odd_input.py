"""Names, numbers and files that are odd or meant to harm: one line each, and nothing raw goes out."""

import copy
import csv
import io
import json
import logging
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from eql_d2 import ClassFrequencies
from eql_d2.cli import main
from eql_d2.drawing.names import drawable
from eql_d2.engine import load_config
from eql_d2.engine.checkpoint import CheckpointError, require_writable
from eql_d2.engine.setup import setup
from eql_d2.errors import InputError, one_line
from eql_d2.evaluation.run_folder import read_config

ROOT = Path(__file__).parents[1]
HUGE = int("9" * 400)
ESCAPE = "\x1b]0;evil\x07\x1b[2J"
DATASET = {
    "images": [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 64} for i in (1, 2)],
    "categories": [{"id": 10 * i, "name": f"c{i}"} for i in range(3)],
    "annotations": [
        {"id": i, "image_id": i, "category_id": 10 * i, "bbox": [8, 8, 40, 40], "area": 1600, "iscrowd": 0}
        for i in (1, 2)
    ],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("key", ["area", "bbox", "category_id", "image_id", "id"])
@pytest.mark.parametrize("command", ["counts", "evaluate"])
def test_integers_of_400_digits(folder, capsys, key, command):
    data = copy.deepcopy(DATASET)
    data["annotations"][0][key] = [HUGE, 1, 2, 3] if key == "bbox" else HUGE
    (folder / "a.json").write_text(json.dumps(data))
    detection = {"image_id": 2, "category_id": 20, "score": 0.5, "bbox": [8, 8, 40, 40]}
    (folder / "r.json").write_text(json.dumps([detection]))
    code = main(["counts", "a.json", "c.json"] if command == "counts" else ["evaluate", "r.json", "a.json"])
    error = capsys.readouterr().err
    if (command, key) == ("counts", "image_id"):  # an id of no image, which is left out and said
        assert code == 0 and error.count("\n") == 1 and "of images that are not listed" in error
    else:
        assert (code, error.count("\n")) == (1, 1) or (command == "evaluate" and code == 0)


@pytest.mark.parametrize(
    "key, value",
    [
        *(
            ("image_count", v)
            for v in (HUGE, [HUGE, 1, 2], "abc", [1, None, 2], {"a": 1}, [[1], [2], [3]], [1, "2", 3])
        ),
        *(("num_images", v) for v in ("5", [5])),
        *(("instance_count", v) for v in (["a"] * 3, 5)),
        ("groups", 5),
    ],
)
def test_wrong_types_in_a_counts_file(folder, key, value):
    counts = {"image_count": [1, 2, 3], "instance_count": [1, 2, 3], "num_images": 5, key: value}
    (folder / "c.json").write_text(json.dumps(counts))
    with pytest.raises(InputError, match=r"c\.json|image_count"):
        ClassFrequencies.from_counts_file("c.json")


@pytest.mark.parametrize(
    "content",
    [b"_BASE_: b.yaml\n", b"_BASE_: a.yaml\n", b"SEED: " + 3000 * b"[" + 3000 * b"]", b"# \xe9\nSEED: 1\n"],
)
def test_a_yaml_file_that_does_not_end_or_is_not_utf8(folder, content):
    (folder / "a.yaml").write_bytes(content)
    (folder / "b.yaml").write_text("_BASE_: a.yaml\n")
    with pytest.raises(InputError, match=r"a\.yaml (cannot be read to its end|is not YAML)"):
        load_config("a.yaml")
    if b"_BASE_" not in content:
        with pytest.raises(InputError, match=r"a\.yaml is not a YAML file"):
            read_config("a.yaml")


def test_a_folder_that_is_none(tmp_path):
    for folder in (str(tmp_path / "what?"), "~/run", ""):
        with pytest.raises(CheckpointError, match="OUTPUT_DIR"):
            require_writable(folder)
    assert not list(tmp_path.iterdir())


def test_names_go_out_without_escape_sequences_formulas_and_without_end(folder, capsys):
    data = copy.deepcopy(DATASET)
    for category, name in zip(data["categories"], (f"{ESCAPE}=cmd", "=cmd|' /C calc'!A0", "n" * 20_000)):
        category["name"] = name
    (folder / "a.json").write_text(json.dumps(data))
    results = [{"image_id": i, "category_id": 10 * i, "score": 0.5, "bbox": [8, 8, 40, 40]} for i in (1, 2)]
    (folder / "r.json").write_text(json.dumps(results))
    assert main(["evaluate", "r.json", "a.json", "--categories", "c.csv"]) == 0
    out = capsys.readouterr().out
    text = (folder / "c.csv").read_text(encoding="utf-8")
    assert "\x1b" not in out + text and max(map(len, (out + text).splitlines())) < 400
    names = [row["name"] for row in csv.DictReader(io.StringIO(text))]
    assert names[1] == "'=cmd|' /C calc'!A0" and names[0].startswith("\\x1b]0;evil") and len(names[2]) < 110


def test_errors_are_one_line_of_what_a_terminal_may_get(capsys):
    assert main(["counts", f"no{ESCAPE}\n.json", "c.json"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "\x1b" not in error and "\\x1b[2J" in error
    with pytest.raises(InputError) as long:
        load_config("", ["MODEL." + "X" * 20_000, 1])
    assert len(str(long.value)) < 4100


def test_no_message_repeats_torchs_advice(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"model": {}, "x": Path("x")}, path)
    try:
        torch.load(path, weights_only=True)
    except Exception as error:
        assert "weights_only" in str(error) and "weights_only" not in one_line(error)
        assert "pathlib" in one_line(error)


def test_names_beyond_the_font_are_drawn_by_their_index(caplog):
    with caplog.at_level(logging.WARNING):
        assert drawable(["apple", "Äpfel", "яблоко", "苹果", "🍎🍏"]) == ["apple", "Äpfel", "яблоко", "3", "4"]
    assert "2 category names have letters that the font of pictures lacks, '苹果' first" in caplog.text


def process(*command, **kwargs):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "LC_ALL": "C"}
    return subprocess.run([sys.executable, *command], env=env, capture_output=True, **kwargs)


def test_a_locale_without_utf8_and_no_asserts(folder):
    """Annotations in UTF-8 are read, and names that the terminal lacks are escaped; with `python -O`, too."""
    data = copy.deepcopy(DATASET)
    data["categories"][1]["name"] = "苹果"
    (folder / "a.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    results = [{"image_id": i, "category_id": 10 * i, "score": 0.5, "bbox": [8, 8, 40, 40]} for i in (1, 2)]
    (folder / "r.json").write_text(json.dumps(results))
    result = process("-O", "-m", "eql_d2", "evaluate", "r.json", "a.json", "--categories", "c.csv")
    assert result.returncode == 0 and not result.stderr, result.stderr
    assert "苹果" in (folder / "c.csv").read_text(encoding="utf-8")


def test_standard_output_that_is_closed_early():
    reader, writer = os.pipe()
    os.close(reader)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "eql_d2", "configs", "list"]
    result = subprocess.run(command, env=env, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert result.returncode == 141 and result.stderr == b""


def test_an_override_without_its_value():
    """yacs asserts it, which `python -O` leaves out."""
    with pytest.raises(InputError, match="pairs of KEY VALUE, and 'SEED' has no value"):
        load_config("", ["SEED"])


@pytest.mark.parametrize("opts", [["SEED", "1", "--resume"], ["SEED", "1", "--num-gpus", "2"]])
@pytest.mark.parametrize("config", ["", "recipe.py"])
def test_an_option_behind_the_overrides(opts, config):
    with pytest.raises(InputError, match=f"{opts[2]} stands behind the overrides"):
        setup(Namespace(config_file=config, opts=opts, eval_only=False, resume=False))
