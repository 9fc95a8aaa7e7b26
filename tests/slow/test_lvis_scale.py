"""Runs of python -m study.scale on a tiny set: one line each, and none twice."""

from functools import partial
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from eql_d2.engine import load_config
from eql_d2.mini_lvis.lvis_scale import MiniLVIS1203Spec
from study.runs import Workshop, train_all
from study.scale import plan, runs

pytestmark = pytest.mark.slow

TINY = partial(MiniLVIS1203Spec, num_categories=6, head_exponent=0.0, num_val_images=12, min_val_images=4)
SIZE = ("MODEL.ROI_HEADS.NUM_CLASSES", 6)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """One folder for all tests, since a registered name is that of one file."""
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture
def workshop(datasets, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "MiniLVIS1203Spec", TINY)
    return Workshop(datasets, tmp_path / "output", tmp_path / "runs.jsonl", "abc")


@pytest.fixture
def weights(tmp_path):
    """Random ones of everything but the classifier, in the place of the base weights."""
    cfg = load_config(str(Path(plan.CONFIG).with_name("softmax_faster_rcnn.yaml")), ["MODEL.DEVICE", "cpu", *SIZE])
    state = {key: value for key, value in build_model(cfg).state_dict().items() if ".cls_score." not in key}
    torch.save({"model": state}, tmp_path / "base.pth")
    return ("MODEL.WEIGHTS", str(tmp_path / "base.pth"))


def tiny(method: plan.Method, *overrides) -> plan.Method:
    return method.but(method.name, *SIZE, *overrides)


def test_a_run_is_a_line_and_none_is_made_twice(workshop, weights, monkeypatch):
    known = plan.methods()
    short = ("SOLVER.MAX_ITER", 12, "DATALOADER.REPEAT_THRESHOLD", 0.1)
    chosen = [tiny(known["RFS"], *short, *weights), tiny(known["NorCal-RFS"])]
    monkeypatch.setattr(runs, "methods", lambda: {method.name: method for method in chosen})
    todo = runs.missing([(method, 0) for method in chosen], workshop.results)
    assert train_all(todo, 1, workshop, runs.train) == {}
    assert runs.missing([(method, 0) for method in chosen], workshop.results) == []
    records = runs.load(workshop.results)
    for method in chosen:
        line = records[method.name][0]
        assert set(line["AP"]) == {"300", "150"} and {"AP", "APr", "APc", "APf"} <= set(line["AP"]["300"])
        assert line["commit"] == "abc" and line["cpu_seconds"] > 0
        assert "$DETECTRON2_DATASETS/mini_lvis_1203_seed_0" in " ".join(line["arguments"])
        assert str(workshop.datasets) not in " ".join(line["arguments"])
    left = {path.name for path in (workshop.output / "RFS" / "0").iterdir()}
    assert "model_final.pth" in left and left <= set(runs.KEPT)


def test_without_the_weights_of_its_first_stage_a_run_makes_them_again(workshop, weights, monkeypatch):
    known = plan.methods()
    first, second = tiny(known["softmax"], "SOLVER.MAX_ITER", 4, *weights), tiny(known["LWS"], "SOLVER.MAX_ITER", 4)
    monkeypatch.setattr(runs, "methods", lambda: {"softmax": first})
    runs.train(second, 0, workshop)
    assert set(runs.load(workshop.results)) == {"softmax", "LWS"}
