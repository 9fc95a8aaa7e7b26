"""configs/lazy/LVISv1 made small: they train, are evaluated, are killed, go on bit for bit, and are reported on.

On MiniLVIS of seven categories, and two iterations on real images with LVIS's 1,203 categories.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig

from eql_d2 import get_config_file
from eql_d2.mini_lvis.datasets import register_mini_lvis
from eql_d2.mini_lvis.generator import MiniLVISSpec
from eql_d2.modeling.long_tail import box_predictor_nodes
from tests.slow.small_recipes import small

pytestmark = pytest.mark.slow

FOLDER = Path(get_config_file("lazy/mini_lvis_eql.py")).parent / "LVISv1"
RECIPES = sorted(path.stem for path in FOLDER.glob("*mask_rcnn*.py"))
CLASSES, ITERATIONS, PERIOD = 7, 4, 2
NAME = "eql_d2_test_recipes"
ROOT = Path(__file__).parents[2]
# A file to train by. (What Detectron2 saves as YAML cannot always be loaded: functions in it may have no module.)
FILE = """
from pathlib import Path
from detectron2.config import LazyConfig
from detectron2.data import DatasetCatalog
from eql_d2.mini_lvis.datasets import register_mini_lvis
from eql_d2.mini_lvis.generator import MiniLVISSpec
from tests.slow.test_our_recipes import for_mini

if {name!r} + "_train" not in DatasetCatalog.list():
    register_mini_lvis({name!r}, MiniLVISSpec(**{spec!r}), Path({folder!r}))
loaded = for_mini(LazyConfig.load({recipe!r}))
model, dataloader, optimizer, lr_multiplier, train = (
    loaded[part] for part in ("model", "dataloader", "optimizer", "lr_multiplier", "train")
)
"""
SPEC = {"num_categories": 7, "num_train_images": 30, "num_val_images": 6, "max_image_count": 20, "min_val_images": 2}


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets") / "mini"
    register_mini_lvis(NAME, MiniLVISSpec(**SPEC), folder)
    return folder


def for_mini(cfg):
    """The small recipe, with an exponential moving average."""
    small(cfg, (f"{NAME}_train", f"{NAME}_val"), "unused", CLASSES)
    for predictor in box_predictor_nodes(cfg.model):
        predictor.cls_loss.frequencies.name = f"{NAME}_train"
    cfg.train.update(max_iter=ITERATIONS, eval_period=ITERATIONS, model_ema={"enabled": True})
    cfg.train.checkpointer.period = PERIOD
    return cfg


def recipe_file(recipe: str, folder: Path, mini: Path) -> Path:
    """A file that `eql-d2 train` takes."""
    file = folder / "recipe.py"
    file.write_text(FILE.format(name=NAME, spec=SPEC, folder=str(mini), recipe=str(FOLDER / f"{recipe}.py")))
    return file


def command(file: Path, output: Path, *arguments: str) -> list[str]:
    run = [sys.executable, "-m", "eql_d2", "train", "--config-file", str(file), *arguments]
    return [*run, f"train.output_dir={output}"]


def kill_after_first_checkpoint(arguments: list[str], output: Path) -> None:
    """SIGKILL, as soon as there is a checkpoint to go on from."""
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 600
    while not (output / "last_checkpoint").is_file():
        assert process.poll() is None and time.monotonic() < end, "it ended before its first checkpoint"
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_killed_recipe_goes_on_bit_for_bit_and_is_reported(recipe, mini, tmp_path):
    file = recipe_file(recipe, tmp_path, mini)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(file, whole), check=True, cwd=ROOT)
    kill_after_first_checkpoint(command(file, killed), killed)
    assert not (killed / "model_final.pth").exists()
    subprocess.run(command(file, killed, "--resume"), check=True, cwd=ROOT)

    models = [torch.load(folder / "model_final.pth", weights_only=True)["model"] for folder in (whole, killed)]
    assert models[0].keys() == models[1].keys()
    assert [key for key in models[0] if not torch.equal(models[0][key], models[1][key])] == []
    for name in ("lvis_instances_results.json", "categories_segm.csv"):
        files = [(folder / "inference" / f"{NAME}_val" / name).read_bytes() for folder in (whole, killed)]
        assert files[0] == files[1]
    page = tmp_path / "report.html"
    report = [sys.executable, "-m", "eql_d2", "report", str(whole), "--output", str(page), "--images", "0"]
    subprocess.run(report, check=True)
    assert "APr" in page.read_text()


@pytest.mark.parametrize("recipe", ["mask_rcnn_vitdet_b_100ep", "cascade_mask_rcnn_swin_b_50ep"])
def test_two_iterations_on_real_images(recipe, shared_data, tmp_path):
    cfg = LazyConfig.load(str(FOLDER / f"{recipe}.py"))
    small(cfg, ("lvis_v1_train", "lvis_v1_val"), tmp_path / "output", 1203)
    cfg.train.eval_period = 2
    LazyConfig.save(cfg, str(tmp_path / "small.yaml"))
    file = tmp_path / "recipe.py"
    parts = ("model", "dataloader", "optimizer", "lr_multiplier", "train")
    load = f"from detectron2.config import LazyConfig\nloaded = LazyConfig.load({str(tmp_path / 'small.yaml')!r})\n"
    file.write_text(load + "".join(f"{part} = loaded.{part}\n" for part in parts))
    environment = {**os.environ, "DETECTRON2_DATASETS": str(shared_data)}
    subprocess.run(command(file, tmp_path / "output"), check=True, env=environment)
    assert (tmp_path / "output" / "model_final.pth").is_file()
    assert (tmp_path / "output" / "inference" / "lvis_v1_val" / "categories_segm.csv").is_file()
