"""CLS_LOSS.COMPILE: the compiled step equals the other, compiles once for all numbers of RoIs, and is no must."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg

from eql_d2 import add_eql_config
from eql_d2.losses import CLS_LOSS_REGISTRY, build_cls_loss, fused, one_pass

K = 37
TAIL = torch.arange(K) % 3 > 0
LOSSES = {"cross-entropy": fused.sigmoid_cross_entropy, "focal": fused.sigmoid_focal}
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU: no g++"
)


@pytest.fixture
def fresh():
    one_pass._compiled.cache_clear()
    yield
    one_pass._compiled.cache_clear()


def step(name, compiled, logits, gt_classes, **weights):
    logits = logits.clone().requires_grad_()
    gamma = {"gamma": 2.0} if name == "focal" else {}
    value = LOSSES[name](logits, gt_classes, **gamma, compiled=compiled, **weights).mean()
    value.backward()
    return value.detach(), logits.grad


def weights_for(R, by_category):
    """With numbers for all categories, as most losses have them, or of each, as ClassWeightedLoss has."""
    of_category = torch.arange(1, K + 1) / 64  # the same in fp32
    of_positives = {"positive_weight": of_category, "negative_weight": 1 - of_category}
    return {
        **(of_positives if by_category else {"positive_weight": 1 / 3}),
        "tail": TAIL,
        "row_weight": torch.arange(1, R + 1) / 64,  # the same in fp32
        "negatives": torch.arange(R * K).view(R, K) % 5 > 0,
    }


@needs_compiler
@pytest.mark.parametrize(
    "name, by_category, dtype, tolerance",
    [("cross-entropy", False, torch.float64, 1e-12), ("focal", True, torch.float32, 1e-6)],
)
def test_compiled_equals_eager_for_any_number_of_rois(name, by_category, dtype, tolerance, fresh):
    compiles = torch._dynamo.utils.counters["stats"]
    before = compiles["unique_graphs"]
    for R in (40, 7, 129):
        logits = torch.randn(R, K, dtype=dtype) * 5
        logits[0, :4] = torch.tensor([1e4, -1e4, 60, -60])
        gt_classes, weights = torch.arange(R) % (K + 1), weights_for(R, by_category)
        value, gradient = step(name, True, logits, gt_classes, **weights)
        expected, expected_gradient = step(name, False, logits.double(), gt_classes, **weights)
        assert abs(value - expected) < tolerance * expected
        assert (gradient - expected_gradient).abs().max() < tolerance * expected_gradient.abs().max()
    assert compiles["unique_graphs"] == before + 1


def test_without_a_compiler_it_warns_once_and_is_eager(fresh, monkeypatch):
    def no_compiler(*args):
        raise RuntimeError("No working C++ compiler found\nand a long explanation")

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: no_compiler)
    warnings = []
    monkeypatch.setattr(one_pass, "log_once", lambda level, text: warnings.append(text))
    batch = torch.randn(20, K), torch.arange(20) % (K + 1)
    for _ in range(2):
        actual = step("cross-entropy", True, *batch, tail=TAIL)
        expected = step("cross-entropy", False, *batch, tail=TAIL)
        assert all(torch.equal(a, b) for a, b in zip(actual, expected))
    assert len(warnings) == 1 and warnings[0].endswith("No working C++ compiler found")


def cfg_for(loss):
    cfg = get_cfg()
    add_eql_config(cfg)
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME = loss
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1203
    cfg.DATASETS.TRAIN = ("lvis_v1_train",)
    return cfg


@pytest.mark.parametrize("name", ["EqualizationLoss", "SigmoidFocalLoss", "ClassBalancedLoss"])
def test_the_key(name):
    cfg = cfg_for(name)
    assert build_cls_loss(cfg).compiled is False
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.COMPILE = True
    assert build_cls_loss(cfg).compiled is True


@pytest.mark.parametrize(
    "file, begin, end",
    [("eql_d2/config.py", "IMAGE_LABELS =", "COMPILE ="), ("docs/speed.md", "COMPILE True", "is the third")],
)
def test_what_is_written_of_the_key_names_the_losses_that_have_it(file, begin, end):
    text = (Path(__file__).parents[2] / file).read_text()
    paragraph = text[text.index(begin) : text.index(end)]
    known = {name for name, _ in CLS_LOSS_REGISTRY}
    able = {name for name, loss in CLS_LOSS_REGISTRY if loss.compiled is not None}
    assert known & set(re.findall(r"\w+", paragraph)) == able


def test_the_key_for_a_loss_without_a_compiled_step():
    cfg = cfg_for("SoftmaxCrossEntropy")
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.COMPILE = True
    with pytest.raises(ValueError, match="COMPILE is True, but SoftmaxCrossEntropy has no compiled step"):
        build_cls_loss(cfg)
