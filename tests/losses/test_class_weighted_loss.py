"""Weights of one's own, against torch's and torchvision's losses."""

import json

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from eql_d2.losses import ClassWeightedLoss, build_cls_loss

K = 4
W = [0.5, 1.0, 3.0, 0.0]
ALPHA = [0.1, 0.25, 0.9, 0.0]
LABELS = torch.tensor([0, 1, 2, 3, K, K, 2])


def logits_for(loss):
    return (torch.randn(len(LABELS), loss.num_logits, dtype=torch.float64) * 3).requires_grad_()


def assert_same(loss, logits, expected):
    value = loss(logits, LABELS)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (value, expected)))


def one_hot():
    return F.one_hot(LABELS, K + 1)[:, :K].double()


def test_softmax_is_torchs_weighted_cross_entropy():
    loss = ClassWeightedLoss(K, weights=W, background_weight=0.7)
    logits = logits_for(loss)
    weight = torch.tensor([*W, 0.7], dtype=torch.float64)
    expected = F.cross_entropy(logits, LABELS, weight, reduction="sum") / len(LABELS)
    assert_same(loss, logits, expected)


def test_sigmoid_is_torchs_positive_weight():
    loss = ClassWeightedLoss(K, weights=W, base="sigmoid")
    logits = logits_for(loss)
    weight = torch.tensor(W, dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(logits, one_hot(), pos_weight=weight, reduction="sum") / len(LABELS)
    assert_same(loss, logits, expected)


def test_focal_has_an_alpha_for_each_category():
    """Torchvision's, column by column, which takes one alpha."""
    loss = ClassWeightedLoss(K, weights=ALPHA, base="focal", gamma=1.5)
    logits, target = logits_for(loss), one_hot()
    columns = [
        sigmoid_focal_loss(logits[:, j], target[:, j], alpha=alpha, gamma=1.5, reduction="sum")
        for j, alpha in enumerate(ALPHA)
    ]
    assert_same(loss, logits, sum(columns) / len(LABELS))


@pytest.mark.parametrize("base", ["softmax", "sigmoid", "focal"])
def test_without_weights_it_is_the_base(base):
    loss = ClassWeightedLoss(K, base=base)
    same = ClassWeightedLoss(K, base=base, weights=[0.25 if base == "focal" else 1] * K)
    logits = logits_for(loss)
    assert torch.equal(loss(logits, LABELS), same(logits, LABELS))
    if base != "focal":
        torch.testing.assert_close(loss(logits, LABELS), loss.plain()(logits, LABELS))


@pytest.mark.parametrize("as_file", [False, True])
def test_weights_come_from_the_config_or_a_file(tiny_cfg, tmp_path, as_file):
    node, weights = "MODEL.ROI_BOX_HEAD.CLS_LOSS", [1, 2.5, 3, 4, 5, 6, 7]
    (tmp_path / "weights.json").write_text(json.dumps(weights))
    key = ("WEIGHTS_FILE", str(tmp_path / "weights.json")) if as_file else ("WEIGHTS", weights)
    cfg = tiny_cfg(f"{node}.NAME", "ClassWeightedLoss", f"{node}.ClassWeightedLoss.{key[0]}", key[1])
    assert build_cls_loss(cfg).class_weight.tolist() == [*weights, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": [1, 2]}, r"\[0, inf\) for each of the 4 categories, got shape \(2,\)"),
        ({"weights": [1, 2, 3, -1]}, "with -1"),
        ({"weights": [1, 2, 3, float("nan")]}, "with nan"),
        ({"weights": [0.5, 0.5, 0.5, 2], "base": "focal"}, r"\[0, 1\].*with 2"),
        ({"weights": ["a"] * 4}, "list of 4 numbers"),
        ({"weights": W, "weights_file": "w.json"}, "keep one"),
        ({"base": "hinge"}, "base must be"),
        ({"gamma": -1.0}, "gamma"),
        ({"background_weight": -1.0}, "background_weight"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClassWeightedLoss(K, **arguments)
