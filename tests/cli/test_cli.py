"""The command `eql-d2`: what it finds, loads and says, and that tools/ do the same."""

import json
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser

from eql_d2 import ClassFrequencies, cli
from eql_d2.cli import main, train
from eql_d2.modeling.calibration import CALIBRATIONS

ROOT = Path(__file__).parents[2]
COMMANDS = {"compare", "configs", "counts", "data", "demo", "export", "report", "results", "sweep", "train"}
WITHOUT = "import sys; sys.modules[{!r}] = None; from eql_d2.cli import main; sys.exit(main(sys.argv[1:]))"


def process(*arguments):
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)


def test_every_command_is_in_the_overview(capsys):
    assert main([]) == 0
    overview = capsys.readouterr().out
    assert COMMANDS <= set(cli.names())
    for name in cli.names():
        assert f"\n  {name} " in overview


@pytest.mark.parametrize("name", sorted(cli.names()))
def test_help_has_an_example_and_every_argument_explained(name, capsys):
    with pytest.raises(SystemExit, match="^0$"):
        main([name, "--help"])
    assert f"eql-d2 {name} " in capsys.readouterr().out.partition("\n\n")[2]
    parser = ArgumentParser()
    cli.command(name).add_arguments(parser)
    assert [action.dest for action in parser._actions if not action.help and action.dest != "action"] == []


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in sorted(COMMANDS))])
def test_help_loads_neither_torch_nor_detectron2(arguments):
    code = (
        "import sys\nfrom eql_d2.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'detectron2', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    result = process("-c", code, *arguments)
    assert result.returncode == 0, result.stderr


def test_an_unknown_command_names_the_nearest(capsys):
    assert main(["tran"]) == 2
    assert capsys.readouterr().err == "error: eql-d2 has no command 'tran'; did you mean train?\n"
    assert main(["x"]) == 2
    assert "`eql-d2 --help` names all" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["torch", "detectron2"])
def test_training_without_torch_or_detectron2_is_one_line_with_the_commands(missing):
    config = ["--config-file", "MiniLVIS/eql_faster_rcnn"]
    result = process("-c", WITHOUT.format(missing), "train", *config)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "make setup" in line and "facebookresearch/detectron2" in line


def test_a_missing_package_of_an_extra_is_one_line_with_the_command():
    result = process("-c", WITHOUT.format("plotly"), "report", "no_run")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].endswith("pip install 'eql_d2[report]'")
    assert "Traceback" not in result.stderr


def test_a_package_that_is_not_ours_to_install_keeps_its_traceback(monkeypatch):
    def run(args):
        import no_such_package  # noqa: F401

    monkeypatch.setattr(cli.command("compare"), "run", run)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        main(["compare", "run"])


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--config-file a.yaml SEED 1 OUTPUT_DIR out",
        "--resume --num-gpus 2 --num-machines 3 --machine-rank 1 --dist-url tcp://host:1234",
        "--config-file a.py --eval-only train.seed=1",
    ],
)
def test_train_takes_what_detectron2_takes(line):
    parser = ArgumentParser()
    train.add_arguments(parser)
    ours, theirs = parser.parse_args(line.split()), default_argument_parser().parse_args(line.split())
    ours.dist_url = ours.dist_url or theirs.dist_url  # as run() fills it in
    assert ours == theirs


def test_train_starts_a_config_of_the_package(monkeypatch):
    from eql_d2.engine import launch
    from eql_d2.engine import main as tool

    started = []
    monkeypatch.setattr(launch, "launch_tool", lambda function, args: started.append((function, args)))
    assert main(["train", "--config-file", "MiniLVIS/eql_faster_rcnn", "SEED", "1"]) == 0
    ((function, args),) = started
    assert function is tool.main and args.opts == ["SEED", "1"]
    assert Path(args.config_file).is_file()
    assert args.dist_url == default_argument_parser().get_default("dist_url")


def test_the_calibrations_of_sweep_are_those_that_there_are():
    assert set(cli.command("sweep").CALIBRATIONS) == set(CALIBRATIONS)


def test_counts_and_errors(tmp_path, capsys):
    annotations, output = tmp_path / "train.json", tmp_path / "counts.json"
    image = {"id": 1, "file_name": "1.png", "height": 9, "width": 9}
    box = {"id": 1, "image_id": 1, "category_id": 9, "bbox": [1, 2, 3, 4]}
    categories = [{"id": 5, "name": "a"}, {"id": 9, "name": "b"}]
    annotations.write_text(json.dumps({"images": [image], "annotations": [box], "categories": categories}))
    assert main(["counts", str(annotations), str(output)]) == 0
    assert ClassFrequencies.from_counts_file(output).image_count.tolist() == [0, 1]
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"wrote {output}; use it with ")
    assert main(["counts", str(tmp_path / "none.json"), str(output)]) == 1
    assert "none.json" in capsys.readouterr().err
    (tmp_path / "a_file").touch()
    assert main(["counts", str(annotations), str(tmp_path / "a_file" / "counts.json")]) == 1
    assert capsys.readouterr().err.startswith("error: cannot write ")


def test_a_mistake_keeps_its_traceback_where_it_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setenv("EQL_D2_TRACEBACK", "1")
    with pytest.raises(ValueError, match=r"no config\.yaml"):
        main(["compare", str(tmp_path)])


def test_a_tool_is_the_command(tmp_path):
    by_tool = process("tools/compare_runs.py", tmp_path)
    by_command = process("-m", "eql_d2", "compare", tmp_path)
    assert by_tool.returncode == by_command.returncode == 1
    assert by_tool.stderr == by_command.stderr != ""


@pytest.mark.parametrize("output", ["/dev/full", "no/such/folder.csv", "file/x.csv", "folder", "n" * 300])
def test_an_output_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, capsys, output):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    results = [{"image_id": 0, "category_id": 0, "score": 0.5, "bbox": [0, 0, 9, 9]}]
    Path("r.json").write_text(json.dumps(results))
    annotations = [{"id": 1, "image_id": 0, "category_id": 0, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}]
    images = [{"id": 0, "file_name": "0.png", "height": 9, "width": 9}]
    data = {"images": images, "annotations": annotations, "categories": [{"id": 0, "name": "a"}]}
    Path("a.json").write_text(json.dumps(data))
    if output == "/dev/full":  # where a file can be opened, but nothing written
        real, output = open, "c.csv"
        full = lambda path, mode="r", **kwargs: real("/dev/full" if "w" in mode else path, mode, **kwargs)
        monkeypatch.setattr("builtins.open", full)
    assert main(["thresholds", "r.json", "a.json", "--output", output]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot write {output}: ") and error.count("\n") == 1


def test_a_picture_and_counts_on_a_full_disk_name_the_file(tmp_path, monkeypatch, capsys):
    ClassFrequencies([1, 2], None, 3).save(tmp_path / "counts.json")
    real = open
    full = lambda path, mode="r", **kwargs: real("/dev/full" if "w" in mode else path, mode, **kwargs)
    monkeypatch.setattr("builtins.open", full)
    assert main(["data", str(tmp_path / "counts.json"), "--output", str(tmp_path / "x.png")]) == 1
    assert capsys.readouterr().err.startswith(f"error: cannot write {tmp_path / 'x.png'}: No space left on device.")


@pytest.mark.parametrize("closed", [[1], [2], [0, 1, 2]])
def test_standard_streams_that_are_closed(tmp_path, closed):
    """Their numbers go to no other file."""
    code = (
        f"import os\n[os.close(fd) for fd in {closed}]\n"
        f"os.execv({sys.executable!r}, ['python', '-c', 'import os, sys; from eql_d2.cli import main; "
        'code = main(["configs", "list", "MiniLVIS"]); '
        "sys.exit(code or os.open(os.devnull, os.O_RDONLY) < 3)'])"
    )
    result = process("-c", code)
    assert result.returncode == 0, result.stderr
