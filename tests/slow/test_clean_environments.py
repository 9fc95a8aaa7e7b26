"""The package where nothing of this clone is at hand: a wheel alone, a wheel with torch and Detectron2, a clone.

torch and Detectron2 are those of the environment of the tests, by a .pth file; the clean environments share nothing
else with it. All that pip installs comes from its package index, or from PIP_FIND_LINKS.

What the wheel does alone is tried with the Python of the tests, and with those that EQL_D2_PYTHONS names:
EQL_D2_PYTHONS="/usr/bin/python3.10 /usr/bin/python3.13" python -m pytest -m slow tests/slow/test_clean_environments.py
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WHEEL_BYTES = 500_000
CONFIG = "MiniLVIS/eql_faster_rcnn"
SHORT = ["SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "MODEL.WEIGHTS", "", "TEST.EVAL_PERIOD", "0"]

PYTHONS = [sys.executable, *os.environ.get("EQL_D2_PYTHONS", "").split()]

pytestmark = pytest.mark.slow


class Environment:
    """A virtual environment, used from a folder that holds nothing."""

    def __init__(self, folder: Path, python: str = sys.executable):
        subprocess.run([python, "-m", "venv", folder / "venv"], check=True)
        self.bin, self.folder = folder / "venv" / "bin", folder / "empty"
        self.folder.mkdir()
        self.variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(self, program: str, *arguments, **kwargs) -> subprocess.CompletedProcess:
        command = [str(self.bin / program), *map(str, arguments)]
        return subprocess.run(command, cwd=self.folder, env=self.variables, capture_output=True, text=True, **kwargs)

    def install(self, *what) -> None:
        result = self.run("python", "-m", "pip", "install", "--quiet", *what)
        assert result.returncode == 0, result.stderr

    def lend_packages(self) -> None:
        """Let it import what the tests' own environment has, but for eql_d2, which it has itself, in front."""
        site = subprocess.check_output(
            [self.bin / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        )
        Path(site.strip(), "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The files that git tracks, so that what lies around in the clone is not in the packages."""
    folder = tmp_path_factory.mktemp("sources")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("this is no clone, so what belongs to it is not known")
    for name in filter(None, tracked.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def build(source: Path, output: Path, kind: str) -> Path:
    """An "sdist" or a "wheel" of a folder, by setuptools' PEP 517 backend."""
    code = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    output.mkdir(exist_ok=True)
    result = subprocess.run([sys.executable, "-c", code, output], cwd=source, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (built,) = output.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(sources, tmp_path_factory):
    return build(sources, tmp_path_factory.mktemp("sdist"), "sdist")


@pytest.fixture(scope="module")
def unpacked(sdist, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    shutil.unpack_archive(sdist, folder, filter="data")
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory):
    return build(sources, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module", params=PYTHONS)
def alone(request, wheel, tmp_path_factory):
    """Nothing but the wheel and what pip installs with it."""
    environment = Environment(tmp_path_factory.mktemp("alone"), request.param)
    environment.install(wheel)
    return environment


@pytest.fixture(scope="module")
def lent(wheel, tmp_path_factory):
    """The wheel, and torch and Detectron2."""
    environment = Environment(tmp_path_factory.mktemp("lent"))
    environment.install("--no-deps", wheel)
    environment.lend_packages()
    return environment


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as file:
        return {name for name in file.namelist() if ".dist-info/" not in name}


def test_the_wheel_is_small_and_whole(wheel):
    assert wheel.stat().st_size <= WHEEL_BYTES
    names = contents(wheel)
    assert {name.split("/")[0] for name in names} == {"eql_d2"}
    configs = {f"eql_d2/{p.relative_to(ROOT)}" for s in ("yaml", "py") for p in (ROOT / "configs").rglob(f"*.{s}")}
    assert configs <= names and "eql_d2/py.typed" in names and "eql_d2/report/page.html" in names


def test_the_sdist_builds_the_same_wheel_and_tests(unpacked, wheel, tmp_path):
    assert contents(build(unpacked, tmp_path / "wheel", "wheel")) == contents(wheel)
    variables = {**os.environ, "PYTHONPATH": str(unpacked)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/cli", "tests/test_package.py"]
    result = subprocess.run(command, cwd=unpacked, env=variables, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_the_wheel_alone(alone):
    assert alone.run("python", "-c", "import torch").returncode != 0
    assert alone.run("eql-d2", "--help").stdout == alone.run("python", "-m", "eql_d2", "--help").stdout != ""
    assert CONFIG in alone.run("eql-d2", "configs", "list").stdout
    assert alone.run("eql-d2", "configs", "copy", CONFIG, "mine").returncode == 0
    assert (alone.folder / "mine" / f"{CONFIG}.yaml").is_file()
    result = alone.run("eql-d2", "train", "--config-file", CONFIG)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "make setup" in line and "facebookresearch/detectron2" in line
    code = "import eql_d2.evaluation.lvis_metrics, eql_d2.evaluation.compare, sys; sys.exit('torch' in sys.modules)"
    assert alone.run("python", "-c", code).returncode == 0


@pytest.fixture
def evaluated(tmp_path):
    """The paths of results and of annotations in LVIS's format: two objects, of which one is found."""
    box = [10, 10, 50, 40]
    truth = {
        "images": [{"id": 7, "width": 200, "height": 100, "neg_category_ids": [], "not_exhaustive_category_ids": []}],
        "categories": [{"id": 3, "name": "cat", "frequency": "r"}, {"id": 5, "name": "dog", "frequency": "f"}],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": k, "bbox": box, "area": 2000} for i, k in ((1, 3), (2, 5))
        ],
    }
    results = [{"image_id": 7, "category_id": 3, "bbox": box, "score": 0.9}]
    paths = tmp_path / "results.json", tmp_path / "annotations.json"
    for path, content in zip(paths, (results, truth), strict=True):
        path.write_text(json.dumps(content))
    return paths


def test_the_wheel_alone_evaluates(alone, wheel, evaluated, tmp_path):
    """A page needs an extra more, and says so in one line."""
    out, page = tmp_path / "out.json", tmp_path / "page.html"
    command = ["evaluate", *evaluated, "--bootstrap", 5, "--categories", tmp_path / "c.csv", "--json", out]
    result = alone.run("eql-d2", *command)
    assert result.returncode == 0, result.stderr
    metrics = json.loads(out.read_text())["results"][0]["metrics"]
    assert round(metrics["AP"], 6) == 50 and round(metrics["APr"], 6) == 100 and metrics["APf"] == 0
    result = alone.run("eql-d2", *command, "--report", page)
    assert result.returncode == 1 and not page.exists()
    assert result.stderr.rstrip().endswith("pip install 'eql_d2[report]'") and len(result.stderr.splitlines()) == 1
    alone.install(f"{wheel}[report]")
    result = alone.run("eql-d2", *command, "--report", page)
    assert result.returncode == 0, result.stderr
    assert "Confusion" in page.read_text()


@pytest.mark.parametrize("program", [["eql-d2"], ["python", "-m", "eql_d2"]])
def test_the_wheel_with_torch_and_detectron2_trains(lent, tmp_path, program):
    where = lent.run("python", "-c", "import eql_d2; print(eql_d2.__file__)").stdout
    assert where.startswith(str(lent.bin.parent))
    lent.variables["DETECTRON2_DATASETS"] = str(tmp_path / "datasets")
    output = tmp_path / "run"
    result = lent.run(*program, "train", "--config-file", CONFIG, *SHORT, "OUTPUT_DIR", output)
    assert result.returncode == 0, result.stderr
    assert (output / "model_final.pth").is_file()
    table = lent.run("eql-d2", "compare", output)
    assert table.returncode == 0 and "| run" in table.stdout, table.stderr
    for command in (["report", output, "--images", 1], ["results", output, "--output", tmp_path / "drawn"]):
        result = lent.run(*program, *command)
        assert result.returncode == 0, result.stderr


def test_a_clone_that_is_editable(sources, tmp_path_factory):
    environment = Environment(tmp_path_factory.mktemp("editable"))
    environment.install("--no-deps", "--editable", sources)
    environment.lend_packages()
    where = environment.run("python", "-c", "import eql_d2; print(eql_d2.__file__)").stdout
    assert Path(where.strip()).parent == sources / "eql_d2"
    assert CONFIG in environment.run("eql-d2", "configs", "list").stdout
    for tool in sorted((sources / "tools").glob("*.py")):
        result = environment.run("python", tool, "--help")
        assert result.returncode == 0, (tool.name, result.stderr)
