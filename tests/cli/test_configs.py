"""`eql-d2 configs`: what is listed, and that a copy is the same config."""

from pathlib import Path

import pytest
from detectron2.config import LazyConfig

from eql_d2 import get_config_file
from eql_d2.cli import main
from eql_d2.config_files import ROOT, config_names, config_path, files_of, find_config
from eql_d2.engine import load_config
from eql_d2.errors import InputError


def test_what_can_be_trained_is_listed(capsys):
    assert main(["configs", "list"]) == 0
    listed = {line.split()[0]: line.split(maxsplit=1)[1:] for line in capsys.readouterr().out.splitlines()}
    assert list(listed) == config_names()
    assert all(listed.values()), [name for name, words in listed.items() if not words]
    every = {path.relative_to(ROOT).as_posix() for suffix in ("yaml", "py") for path in ROOT.rglob(f"*.{suffix}")}
    parts = {name for name in every if Path(name).name.startswith("Base-")}
    parts |= {f"lazy/LVISv1/{name}.py" for name in ("data", "heads", "losses", "schedule")}
    assert set(listed) == every - parts


def test_a_part_of_the_names(capsys):
    assert main(["configs", "list", "minilvis/eqlv2_f"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["MiniLVIS/eqlv2_faster_rcnn.yaml"]
    assert main(["configs", "list", "nothing"]) == 1


@pytest.mark.parametrize("name", config_names())
def test_a_copy_is_made_of_all_files_that_are_read(name, tmp_path, capsys):
    assert main(["configs", "copy", name, str(tmp_path)]) == 0
    copy = tmp_path / name
    assert str(copy) in capsys.readouterr().out
    if name.endswith(".yaml"):
        assert load_config(str(copy)) == load_config(get_config_file(name))
    else:
        copied = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.py")}
        assert copied == {path.relative_to(ROOT) for path in files_of(find_config(name))}


def test_a_copied_lazy_config_is_the_same(tmp_path):
    name = "lazy/mini_lvis_vitdet_eql.py"
    main(["configs", "copy", name, str(tmp_path)])
    for path, dump in ((tmp_path / name, "copied.yaml"), (get_config_file(name), "own.yaml")):
        LazyConfig.save(LazyConfig.load(str(path)), str(tmp_path / dump))
    assert (tmp_path / "copied.yaml").read_text() == (tmp_path / "own.yaml").read_text()


def test_a_file_is_never_replaced(tmp_path, capsys):
    changed = tmp_path / "MiniLVIS" / "eql_faster_rcnn.yaml"
    changed.parent.mkdir()
    changed.write_text("mine")
    assert main(["configs", "copy", "MiniLVIS/eql_faster_rcnn", str(tmp_path)]) == 1
    assert f"there is already {changed}" in capsys.readouterr().err
    assert changed.read_text() == "mine" and len(list(tmp_path.rglob("*.yaml"))) == 1


def test_show_has_the_bases_first(capsys):
    assert main(["configs", "show", "MiniLVIS/eql_faster_rcnn"]) == 0
    out = capsys.readouterr().out
    assert out.index("# ---- MiniLVIS/Base-MiniLVIS.yaml") < out.index("# ---- MiniLVIS/eql_faster_rcnn.yaml")
    assert out.endswith(Path(get_config_file("MiniLVIS/eql_faster_rcnn.yaml")).read_text() + "\n")


@pytest.mark.parametrize(
    "name", ["MiniLVIS/eql_faster_rcnn.yaml", "MiniLVIS/eql_faster_rcnn", "configs/MiniLVIS/eql_faster_rcnn.yaml"]
)
def test_a_config_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = str(find_config("MiniLVIS/eql_faster_rcnn.yaml"))
    assert config_path(name) == own
    Path(name).parent.mkdir(parents=True)
    Path(name).touch()
    assert config_path(name) == name  # a person's own file comes first


def test_names_that_are_none():
    assert config_path("") == ""
    assert config_path("https://example.com/a.yaml") == "https://example.com/a.yaml"
    with pytest.raises(InputError, match="did you mean MiniLVIS/eql_faster_rcnn.yaml"):
        config_path("MiniLVIS/eql_fasterrcnn")
    with pytest.raises(InputError, match="was replaced by: COCO/"):
        config_path("configs/COCO/sigmoid_mask_rcnn_R_50_FPN_1x")


def test_a_config_is_loaded_by_its_name():
    name = "MiniLVIS/eql_faster_rcnn"
    assert load_config(name) == load_config(get_config_file(name))
    with pytest.raises(InputError, match="there is no file and no config .*did you mean MiniLVIS/eql_faster_rcnn.yaml"):
        load_config(f"{name}s.yaml")
