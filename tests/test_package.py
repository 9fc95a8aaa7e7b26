"""Importing, finding configs, the tools' exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import eql_d2
from eql_d2.errors import InputError

ROOT = Path(__file__).parents[1]


def run(*arguments, **kwargs):
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, **kwargs)


def test_configs_are_found():
    assert Path(eql_d2.get_config_file("MiniLVIS/eql_faster_rcnn.yaml")).is_file()
    with pytest.raises(InputError, match="'MiniLVIS/eqlfaster_rcnn.yaml'; did you mean MiniLVIS/eql_faster_rcnn.yaml"):
        eql_d2.get_config_file("MiniLVIS/eqlfaster_rcnn.yaml")
    with pytest.raises(InputError, match="'nothing.yaml'; `eql-d2 configs list` names all"):
        eql_d2.get_config_file("nothing.yaml")


def test_import_without_detectron2_says_how_to_get_it():
    code = "import sys; sys.modules['detectron2'] = None; import eql_d2; eql_d2.add_eql_config"
    result = run("-c", code)
    assert result.returncode != 0
    assert "make setup" in result.stderr and "facebookresearch/detectron2" in result.stderr


def test_a_torch_that_is_too_old_is_named():
    result = run("-c", "import torch; del torch.amp.GradScaler; import eql_d2.registration")
    assert result.returncode != 0
    assert f"needs torch 2.3 or newer, and this is torch {torch.__version__}" in result.stderr


def test_heavy_packages_are_imported_lazily():
    """The LVIS API imports matplotlib and OpenCV: a second that only evaluation should pay."""
    code = (
        "import sys; import detectron2.modeling; before = set(sys.modules); import eql_d2;"
        "print(sorted({'lvis', 'cv2', 'matplotlib.pyplot'} & (set(sys.modules) - before)))"
    )
    result = run("-c", code)
    assert result.stdout.strip() == "[]", result.stderr


@pytest.mark.parametrize("tool", sorted(p.name for p in (ROOT / "tools").glob("*.py")))
def test_every_tool_has_help(tool):
    result = run(f"tools/{tool}", "--help")
    assert result.returncode == 0 and "usage" in result.stdout.lower()
