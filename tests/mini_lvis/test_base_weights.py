from pathlib import Path

import pytest
import torch
from detectron2.utils.file_io import PathManager

from eql_d2.errors import InputError
from eql_d2.mini_lvis import base_weights
from eql_d2.mini_lvis.generator import MiniLVISSpec


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Cached weights under a temporary root, made by a stand-in for training that counts its calls."""
    calls = []

    def run(command, check, env):
        calls.append((command, env))
        torch.save({"model": {}}, command[-1])

    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setattr(base_weights.subprocess, "run", run)
    return calls


def test_weights_are_trained_once(trained):
    paths = {PathManager.get_local_path("mini_lvis://base_weights.pth") for _ in range(2)}
    assert len(paths) == 1 and Path(paths.pop()).is_file() and len(trained) == 1


def test_another_dataset_or_config_needs_other_weights(trained, monkeypatch):
    first = base_weights.ensure_base_weights()
    spec = MiniLVISSpec(num_categories=80, first_glyph=90, tail_exponent=0.0, seed=1)
    monkeypatch.setitem(base_weights.SPECS, "mini_lvis_base", spec)
    assert base_weights.ensure_base_weights() != first
    assert len(trained) == 2


def test_training_is_kept_out_of_torchruns_group(trained, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "1")
    base_weights.ensure_base_weights()
    ((_, environment),) = trained
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} & environment.keys() and "PATH" in environment


def test_unknown_weights():
    with pytest.raises(InputError, match="only mini_lvis://base_weights.pth"):
        PathManager.get_local_path("mini_lvis://other.pth")


def test_everything_but_the_classifier_is_kept(monkeypatch, tmp_path, tiny_cfg):
    """The training itself, shortened to two iterations on a small dataset."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from eql_d2.mini_lvis.datasets import register_mini_lvis

    name = "eql_d2_test_base"
    spec = MiniLVISSpec(num_categories=7, num_train_images=10, num_val_images=3, max_image_count=5, min_val_images=1)
    register_mini_lvis(name, spec, tmp_path / "mini")
    overrides = ["DATASETS.TRAIN", (f"{name}_train",), "DATASETS.TEST", (), "SOLVER.MAX_ITER", 2]
    monkeypatch.setattr(base_weights, "load_config", lambda file, opts: tiny_cfg(*overrides, *opts))
    path = tmp_path / "weights" / "base.pth"
    path.parent.mkdir()
    base_weights.train_base_weights(path)
    weights = torch.load(path)["model"]
    assert weights and not any("cls_score" in key for key in weights)
    assert any("bbox_pred" in key for key in weights) and any("backbone" in key for key in weights)
    for split in ("train", "val"):
        DatasetCatalog.remove(f"{name}_{split}")
        MetadataCatalog.remove(f"{name}_{split}")
