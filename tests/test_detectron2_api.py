"""The Detectron2 that is installed has what this project uses, and tools/check_detectron2.py notices what it lacks."""

import importlib.util
import re
from pathlib import Path

import detectron2.layers
import pytest
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import DefaultTrainer, SimpleTrainer
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("check_detectron2", ROOT / "tools" / "check_detectron2.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_detectron2_has_what_we_use(check):
    assert not check.problems(), "\n".join(check.problems())


@pytest.mark.parametrize(
    "owner, name, message",
    [
        (detectron2.layers, "batched_nms", "inference.py: detectron2.layers.batched_nms, which it imports, is gone"),
        (DetectionCheckpointer, "_torch_load", "LongTailCheckpointer._torch_load <- .*: the latter is gone"),
        (CascadeROIHeads, "_create_proposals_from_boxes", "uses self._create_proposals_from_boxes, which none of"),
        (FastRCNNOutputLayers, "from_config", r"calls super\(\).from_config, which is gone"),
    ],
)
def test_what_is_gone_is_named(owner, name, message, check, monkeypatch):
    monkeypatch.delattr(owner, name)
    assert_named(message, check)


@pytest.mark.parametrize(
    "owner, name, new, message",
    [
        (
            FastRCNNOutputLayers,
            "losses",
            lambda self, predictions, proposals, weights: None,
            r"LongTailFastRCNNOutputLayers.losses <- .* takes \(self, predictions, proposals\), not .*weights",
        ),
        (
            DefaultTrainer,
            "build_evaluator",
            classmethod(lambda cls, cfg, dataset: None),
            "Trainer.build_evaluator <- .*: missing a required argument: 'dataset_name'",
        ),
        (
            SimpleTrainer,
            "__init__",
            lambda self, model, optimizer: None,
            r"TrainStep calls super\(\).__init__ with arguments that it does not take: too many positional",
        ),
        (
            detectron2.layers,
            "cat",
            lambda tensors, dim, out: None,
            r"fast_rcnn.py:\d+: cat does not take these arguments",
        ),
    ],
)
def test_what_takes_other_arguments_is_named(owner, name, new, message, check, monkeypatch):
    monkeypatch.setattr(owner, name, new)
    assert_named(message, check)


def test_an_override_that_is_not_listed_is_named(check):
    problems = list(check.override_problems(check.our_classes(), listed=[]))
    assert all("not in detectron2_overrides.txt" in problem for problem in problems) and len(problems) > 50


def assert_named(message, check):
    problems = check.problems()
    assert any(re.search(message, problem) for problem in problems), problems
