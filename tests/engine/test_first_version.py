"""The output folder of a training of commit 862c63d, the first version: it is resumed, evaluated and read.

first_version/ has its small files and the layout of its checkpoint (first_version/make.py says how they were made);
the tensors are made up here. tests/losses/test_first_checkpoints.py has the state of every loss.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from eql_d2 import ClassFrequencies
from eql_d2.engine import LongTailCheckpointer, Trainer, load_config
from eql_d2.engine.checks import check_run
from eql_d2.engine.dataset_checks import check_classes_of_model
from eql_d2.engine.run_config import write_run_config
from eql_d2.engine.settings import settings_of
from eql_d2.evaluation.run_folder import read_run
from eql_d2.mini_lvis.generator import MiniLVISSpec, ensure
from tests.engine.first_version.make import CHECKPOINT, HERE, KEPT, OF_EVALUATION, restored

SPEC = MiniLVISSpec(num_categories=7, num_train_images=30, num_val_images=4, max_image_count=20, min_val_images=1)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder, stopped after 3 of 6 iterations, beside its data; both where its config says, from here."""
    monkeypatch.chdir(tmp_path)
    ensure(SPEC, Path("data"))
    folder = Path("run")
    inference = folder / "inference" / "proof_val"
    inference.mkdir(parents=True)
    for name in KEPT:
        shutil.copy(HERE / name, folder)
    for name in OF_EVALUATION:
        shutil.copy(HERE / name, inference)
    layout = json.loads((HERE / "layout.json").read_text())
    torch.save(restored(layout, torch.Generator().manual_seed(0)), folder / CHECKPOINT)
    (folder / "last_checkpoint").write_text(CHECKPOINT)
    yield folder
    for name in ("proof_train", "proof_val"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_it_goes_on_where_it_was_stopped(run):
    checkpoint = torch.load(run / CHECKPOINT, weights_only=True)
    cfg = load_config(str(run / "config.yaml"))
    before = cfg.dump()
    write_run_config(cfg, evaluates=False, resumes=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 3
    assert_weights(trainer.model, run)
    momenta = checkpoint["trainer"]["_trainer"]["optimizer"]["state"]
    state = trainer._trainer.optimizer.state_dict()["state"]
    assert all(torch.equal(state[i]["momentum_buffer"], of["momentum_buffer"]) for i, of in momenta.items())
    sums = checkpoint["trainer"]["hooks"]["GradientBalance"]
    expected = sums["total"][0] + sums["stages"][0][0]

    results = trainer.train()
    assert trainer.iter == 6 and results["bbox"]["AR@300"] >= 0
    written = json.loads((run / "gradient_balance.json").read_text())
    assert written["iterations"] == sums["iterations"] + 3
    (stage,) = written["stages"]
    assert (torch.tensor([stage["positive"], stage["negative"]]) >= expected.float() - 1e-6).all()
    assert load_config(str(run / "config.yaml")).dump() == before


def test_its_checkpoint_is_evaluated(run):
    """It names no classes, which later ones do; the evaluation itself is that of above."""
    cfg = load_config(str(run / "config.yaml"), ["MODEL.WEIGHTS", str(run / CHECKPOINT), "OUTPUT_DIR", "evaluation"])
    check_run(cfg, train=False)
    model = Trainer.build_model(cfg)
    loaded = LongTailCheckpointer(model).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    check_classes_of_model(settings_of(cfg), loaded.get("thing_classes"))
    assert_weights(model, run)


def test_its_results_are_read(run):
    found = read_run(run, "bbox", None)
    assert found.dataset == "proof_val" and found.metrics["AP"] == found.analysis["metrics"]["AP"]
    assert [c["train_images"] for c in found.categories] == load_counts(run).image_count.tolist()
    assert len(found.gradients) == 7 and all(negative > 0 for _, negative in found.gradients)
    assert found.series("loss_cls").keys() == {5}


def test_its_counts_are_those_of_its_data(run):
    counts = load_counts(run)
    load_config(str(run / "config.yaml"))
    again = ClassFrequencies.from_dataset("proof_train")
    assert torch.equal(counts.image_count, again.image_count) and counts.groups == again.groups
    assert torch.equal(counts.instance_count, again.instance_count) and counts.num_images == again.num_images == 29


def assert_weights(model, run: Path) -> None:
    weights, expected = model.state_dict(), torch.load(run / CHECKPOINT, weights_only=True)["model"]
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())


def load_counts(run: Path) -> ClassFrequencies:
    return ClassFrequencies.from_counts_file(run / "class_counts_proof_train.json")
