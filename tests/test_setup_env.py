"""What tools/setup_env.sh decides to do, with a Python whose pip and venv are stubs: nothing is downloaded."""

import os
import subprocess
import sys
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
        if [[ $fate == kill && $* == *$word* ]]; then kill -9 $PPID; fi
        if [[ $fate == fail && $* == *$word* ]]; then echo "ERROR: no such luck"; exit 1; fi
        case "$*" in *" install "*)
            for name in torch torchvision detectron2 eql_d2; do mkdir -p "$here/../packages/$name"; done
            touch "$here"/../packages/{{torch,torchvision,detectron2,eql_d2}}/__init__.py
            echo "build_model = None" >"$here/../packages/detectron2/modeling.py" ;;
        esac ;;
    *) PYTHONHOME={home} PYTHONPATH="$here/../packages" exec -a "$here/$(basename "$0")" {python} -S "$@" ;;
esac
"""


class Machine:
    """A folder with the stub Python in parent/bin, and set-up runs that make the folder's `venv`."""

    def __init__(self, folder: Path):
        self.venv = folder / "venv"
        self.fate = folder / "fate"
        self.fate.write_text("none\n")
        self._log = folder / "pip.log"
        self._log.touch()
        python = os.path.realpath(sys.executable)
        self.stub = STUB.format(log=self._log, fate=self.fate, home=sys.base_prefix, python=python)
        self.python = self.make_python(folder / "parent" / "bin" / "python3")

    def make_python(self, path: Path) -> Path:
        path.parent.mkdir(parents=True)
        path.write_text(self.stub)
        path.chmod(0o755)
        return path

    def start(self, *args, **variables) -> subprocess.Popen:
        inherited = {k: v for k, v in os.environ.items() if k not in ("DETECTRON2", "PYTHONPATH", "PYTHONHOME")}
        env = {**inherited, "VENV": str(self.venv), "PYTHON": str(self.python), **variables}
        command = ["bash", str(ROOT / "tools" / "setup_env.sh"), *args]
        return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def run(self, *args, code=0, **variables) -> str:
        process = self.start(*args, **variables)
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


def test_dry_run_from_nothing_names_every_stage_and_changes_nothing(machine):
    output = machine.run("--dry-run")
    assert all(f"[{i}/4]" in output for i in (1, 2, 3, 4))
    assert not machine.venv.exists()
    assert machine.pip_calls() == ""


def test_complete_environment_is_left_alone(machine):
    machine.run()
    calls = machine.pip_calls()
    assert "requirements/torch.txt" in calls and "--require-hashes" in calls and "--editable" in calls
    assert "is ready" in machine.run()
    assert machine.pip_calls() == ""


def test_other_detectron2_is_installed_and_remembered(machine):
    machine.run()
    machine.pip_calls()
    machine.run(DETECTRON2="git+https://example.org/detectron2")
    calls = machine.pip_calls()
    assert "--no-build-isolation git+https://example.org/detectron2" in calls and "--require-hashes" not in calls
    assert "is ready" in machine.run()


def test_killed_set_up_is_made_anew(machine):
    machine.fate.write_text("kill torch.txt\n")
    machine.run(code=-9)
    half_written = machine.venv / "half_written"
    half_written.touch()
    machine.fate.write_text("none\n")
    assert "made anew: its last set-up did not finish" in machine.run()
    assert not half_written.exists()
    assert "is ready" in machine.run()


def test_failure_is_one_line_and_does_not_cost_torch(machine):
    machine.fate.write_text("fail --editable\n")
    error = machine.run(code=1).splitlines()[-1]
    assert "error: stage eql_d2" in error and "no such luck" in error and "venv-setup.log" in error
    downloaded = machine.venv / "downloaded"
    downloaded.touch()
    machine.fate.write_text("none\n")
    machine.run()
    assert downloaded.exists()


@pytest.mark.parametrize("fate", ["none", "kill --editable"])
def test_environment_of_a_users_own_is_added_to(machine, fate):
    machine.make_python(machine.venv / "bin" / "python")
    for package in ("torch", "torchvision", "detectron2"):
        (machine.venv / "packages" / package).mkdir(parents=True)
        (machine.venv / "packages" / package / "__init__.py").touch()
    (machine.venv / "packages" / "detectron2" / "modeling.py").write_text("build_model = None")
    mine = machine.venv / "mine"
    mine.touch()
    machine.fate.write_text(f"{fate}\n")
    machine.run(code=-9 if fate.startswith("kill") else 0)
    machine.fate.write_text("none\n")
    machine.run()
    assert mine.exists()
    calls = machine.pip_calls()
    assert "--editable" in calls and "torch.txt" not in calls and "detectron2" not in calls


def test_the_numpy_that_torch_was_built_for_stays(machine):
    machine.make_python(machine.venv / "bin" / "python")
    for package in ("torch", "torchvision", "detectron2", "numpy-1.26.4.dist-info"):
        (machine.venv / "packages" / package).mkdir(parents=True)
        (machine.venv / "packages" / package / "__init__.py").touch()
    (machine.venv / "packages" / "numpy-1.26.4.dist-info" / "METADATA").write_text("Name: numpy\nVersion: 1.26.4\n")
    (machine.venv / "packages" / "detectron2" / "modeling.py").write_text("build_model = None")
    machine.run()
    constraints = machine.venv / ".eql_d2-numpy.txt"
    assert constraints.read_text() == "numpy==1.26.4\n"
    installs = [call for call in machine.pip_calls().splitlines() if " install " in call]
    assert installs and all(f"--constraint {constraints}" in call for call in installs)


def test_torch_and_detectron2_of_the_parent_are_used(machine):
    for package in ("torch", "torchvision", "detectron2"):
        (machine.python.parents[1] / "packages" / package).mkdir(parents=True)
        (machine.python.parents[1] / "packages" / package / "__init__.py").touch()
    output = machine.run("--dry-run")
    assert "torchvision: used as they are" in output and "Detectron2: used as it is" in output
    assert "used as" not in machine.run("--dry-run", DETECTRON2="pinned")


def test_two_at_once_install_once(machine):
    both = [machine.start(), machine.start()]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert machine.pip_calls().count("requirements/torch.txt") == 1


def test_errors_say_what_to_do(machine, tmp_path):
    assert "not a Python 3.10 or newer" in machine.run(PYTHON="/bin/false", code=1)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").touch()
    assert "choose another with VENV=" in machine.run(VENV=str(tmp_path / "folder"), code=1)
