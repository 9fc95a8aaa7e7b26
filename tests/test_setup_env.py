"""What tools/setup_env.sh decides to do, with a Python whose pip and venv are stubs: nothing is downloaded."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# A Python that sees no packages but those in ../packages, where its `pip install` makes the ones that set-up looks for.
# If the file `fate` says "kill WORD" or "fail WORD", a pip call with that word kills the set-up, or fails.
STUB = """#!/usr/bin/env bash
here=$(cd "$(dirname "$0")" && pwd)
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip "*)
        echo "$*" >>{log}
        read -r fate word <{fate}
        if [[ $fate == kill && $* == *$word* ]]; then kill -9 $(ps -o ppid= -p $PPID); fi
        if [[ $fate == fail && $* == *$word* ]]; then echo "ERROR: no such luck"; exit 1; fi
        case "$3" in
            install)
                for name in torch torchvision detectron2 eql_d2; do mkdir -p "$here/../packages/$name"; done
                touch "$here"/../packages/{{torch,torchvision,detectron2,eql_d2}}/__init__.py
                echo "build_model = None" >"$here/../packages/detectron2/modeling.py" ;;
            download | wheel)
                for word; do [[ $last != --dest && $last != --wheel-dir ]] || folder=$word; last=$word; done
                touch "$folder/detectron2-0-cp310-none-any.whl" ;;
        esac ;;
    *) PYTHONHOME={home} PYTHONPATH="$here/../packages" exec -a "$here/$(basename "$0")" {python} -S "$@" ;;
esac
"""


class Machine:
    """A folder with the stub Python in parent/bin, and set-up runs that make the folder's `venv`."""

    def __init__(self, folder: Path):
        self.folder, self.venv, self.fate, self._log = folder, folder / "venv", folder / "fate", folder / "pip.log"
        self.fate.write_text("none\n")
        self._log.touch()
        python = os.path.realpath(sys.executable)
        self.stub = STUB.format(log=self._log, fate=self.fate, home=sys.base_prefix, python=python)
        self.python = self.make_python(folder / "parent")

    def make_python(self, prefix: Path, *packages: str) -> Path:
        """A stub in a folder, with these packages."""
        python = prefix / "bin" / "python3" if prefix.name == "parent" else prefix / "bin" / "python"
        for package in packages:
            (prefix / "packages" / package).mkdir(parents=True)
            (prefix / "packages" / package / "__init__.py").touch()
            (prefix / "packages" / package / "modeling.py").write_text("build_model = None")
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text(self.stub)
        python.chmod(0o755)
        return python

    def start(self, **variables) -> subprocess.Popen:
        inherited = {k: v for k, v in os.environ.items() if k not in ("DETECTRON2", "PYTHONPATH", "PYTHONHOME")}
        env = {**inherited, "VENV": str(self.venv), "PYTHON": str(self.python), **variables}
        command, pipe = ["bash", str(ROOT / "tools" / "setup_env.sh")], subprocess.PIPE
        return subprocess.Popen(command, env=env, cwd=self.folder, text=True, stdout=pipe, stderr=subprocess.STDOUT)

    def run(self, code=0, **variables) -> str:
        process = self.start(**variables)
        output = process.communicate(timeout=60)[0]
        assert process.returncode == code, output
        return output

    def pip_calls(self) -> str:
        """The pip calls since the last time this was asked."""
        calls = self._log.read_text()
        self._log.write_text("")
        return calls


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_complete_environment_is_left_alone(machine):
    machine.run()
    calls = machine.pip_calls()
    assert "requirements/torch.txt" in calls and "--require-hashes" in calls and "--editable" in calls
    assert machine.run(PYTHON="") == f"eql_d2 set-up: {machine.venv} is ready (Detectron2: pinned)\n"
    assert machine.pip_calls() == ""


def test_a_detectron2_at_an_address_is_installed_and_remembered(machine):
    machine.run()
    machine.pip_calls()
    machine.run(DETECTRON2="git+https://example.org/detectron2")
    calls = machine.pip_calls()
    assert "git+https://example.org/detectron2" in calls and "--require-hashes" not in calls + machine.run()
    assert calls.index("pip wheel") < calls.index("pip uninstall")
    assert machine.pip_calls() == "" and "torch.txt" not in calls


def test_a_folder_is_built_again_when_it_is_edited(machine):
    """From a relative path, and from a copy, so that the build leaves nothing in it."""
    source = machine.folder / "mine"
    source.mkdir()
    (source / "setup.py").write_text("setup()")
    for edit in ("setup()", "setup() # edited"):
        (source / "setup.py").write_text(edit)
        machine.run(DETECTRON2="mine")
        assert str(source) not in machine.pip_calls()
        machine.run()
        assert machine.pip_calls() == ""
    assert [path.name for path in source.iterdir()] == ["setup.py"]


def test_a_mistyped_detectron2_costs_nothing(machine):
    machine.run()
    machine.pip_calls()
    assert "DETECTRON2=../detectron3 is no folder with a setup.py" in machine.run(code=1, DETECTRON2="../detectron3")
    machine.fate.write_text("fail wheel\n")
    assert "step detectron2 failed" in machine.run(code=1, DETECTRON2="git+https://example.org/no_such_thing")
    assert "uninstall" not in machine.pip_calls()
    machine.fate.write_text("none\n")
    assert "ready (Detectron2: pinned)" in machine.run()
    assert machine.pip_calls() == ""


def test_killed_set_up_is_made_anew(machine):
    machine.fate.write_text("kill torch.txt\n")
    machine.run(code=-9)
    half_written = machine.venv / "half_written"
    half_written.touch()
    machine.fate.write_text("none\n")
    assert "made anew of" in machine.run()
    assert not half_written.exists()
    assert "is ready" in machine.run()


def test_failure_says_why_and_does_not_cost_torch(machine):
    machine.fate.write_text("fail --editable\n")
    output = machine.run(code=1)
    assert "ERROR: no such luck" in output and "error: step eql_d2 failed" in output.splitlines()[-1]
    machine.pip_calls()
    machine.fate.write_text("none\n")
    machine.run()
    assert "torch.txt" not in machine.pip_calls()


@pytest.mark.parametrize("fate", ["none", "kill --editable"])
def test_environment_of_a_users_own_is_added_to(machine, fate):
    machine.make_python(machine.venv, "torch", "torchvision", "detectron2", "mine")
    numpy = machine.venv / "packages" / "numpy-1.26.4.dist-info"
    numpy.mkdir()
    (numpy / "METADATA").write_text("Name: numpy\nVersion: 1.26.4\n")
    machine.fate.write_text(f"{fate}\n")
    machine.run(code=-9 if fate.startswith("kill") else 0)
    machine.fate.write_text("none\n")
    machine.run()
    assert (machine.venv / "packages" / "mine").exists()
    calls = machine.pip_calls()
    assert "--editable" in calls and "torch.txt" not in calls and "detectron2" not in calls
    assert ("--ignore-installed" in calls) == (fate != "none")
    assert all("numpy==1.26.4" in call for call in calls.splitlines() if "pip install" in call)  # torch's own


def test_torch_and_detectron2_of_the_parent_are_used(machine):
    machine.make_python(machine.folder / "parent", "torch", "torchvision", "detectron2")
    before = sorted(Path(sysconfig.get_path("purelib", vars={"base": sys.base_prefix})).glob("*.pth"))
    assert "torchvision, as they are" in machine.run()
    assert [path.name for path in machine.venv.rglob("*.pth")] == ["eql_d2_parent.pth"]
    assert sorted(Path(sysconfig.get_path("purelib", vars={"base": sys.base_prefix})).glob("*.pth")) == before
    assert "torch.txt" not in machine.pip_calls()
    assert "made anew of" in machine.run(DETECTRON2="pinned")
    assert "torch.txt" in machine.pip_calls()


def test_two_at_once_install_once(machine):
    both = [machine.start(), machine.start()]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert machine.pip_calls().count("requirements/torch.txt") == 1


def test_errors_say_what_to_do(machine):
    assert "not a Python 3.10 or newer" in machine.run(PYTHON="/bin/false", code=1)
    (machine.folder / "folder").mkdir()
    (machine.folder / "folder" / "thesis.txt").touch()
    assert "choose another with VENV=" in machine.run(VENV=str(machine.folder / "folder"), code=1)
