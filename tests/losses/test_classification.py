"""Plain classification: logits of the K classes and no background, for every loss that has one logit a class."""

import inspect

import pytest
import torch
from torch.nn import functional as F

from eql_d2 import CLS_LOSS_REGISTRY
from eql_d2.losses import SigmoidLoss, SoftmaxLoss
from eql_d2.modeling.calibration import LogitAdjustment

K, D = 7, 16
SOFTMAX = sorted(name for name, cls in CLS_LOSS_REGISTRY if issubclass(cls, SoftmaxLoss))
SIGMOID = sorted(name for name, cls in CLS_LOSS_REGISTRY if issubclass(cls, SigmoidLoss))


@pytest.fixture
def make(frequencies):
    """Makes the loss of a name, with its defaults."""

    def make_loss(name, **arguments):
        loss_class = CLS_LOSS_REGISTRY.get(name)
        if "frequencies" in inspect.signature(loss_class.__init__).parameters:
            arguments.setdefault("frequencies", frequencies)
        return loss_class(num_classes=K, **arguments)

    return make_loss


def a_batch(dtype=torch.float64, scale=3.0):
    """((N, K) logits that require a gradient, labels without background, features)."""
    labels = torch.arange(3 * K) % K
    logits = (torch.randn(len(labels), K) * scale).to(dtype).requires_grad_()
    return logits, labels, torch.rand(len(labels), D).to(dtype)


def step(loss, logits, labels, features):
    """(value, gradient) with the random state that every call here starts from."""
    logits = logits.detach().clone().requires_grad_()
    torch.manual_seed(0)
    value = loss(logits, labels, features)
    value.backward()
    return value.detach(), logits.grad


# ---- what each loss is over K classes, written without the package ----


def of_cross_entropy(logits, labels, features, frequencies):
    return F.cross_entropy(logits, labels)


def of_label_smoothing(logits, labels, features, frequencies):
    return F.cross_entropy(logits, labels, label_smoothing=0.1)  # epsilon / K, not epsilon / (K + 1)


def of_focal(logits, labels, features, frequencies):
    p = logits.softmax(1).gather(1, labels[:, None])
    return -((1 - p) ** 2 * p.log()).mean()


def of_logit_adjustment(logits, labels, features, frequencies):
    prior = frequencies.instance_count.double() / frequencies.instance_count.sum()
    return F.cross_entropy(logits + prior.log(), labels)


def of_temperatures(logits, labels, features, frequencies):
    n = frequencies.instance_count.double()
    return F.cross_entropy(logits / (n.max() / n) ** 0.1, labels)


def of_weights(logits, labels, features, frequencies):
    weight = 1 / frequencies.instance_count.double()
    weight = weight * K / weight.sum()
    return (weight[labels] * F.cross_entropy(logits, labels, reduction="none")).mean()


def of_influence(logits, labels, features, frequencies):
    error = (logits.softmax(1) - F.one_hot(labels, K)).abs().sum(1)
    weight = 1 / frequencies.instance_count.double()
    weight = (weight * K / weight.sum())[labels] / (error * features.abs().sum(1) + 1e-3)
    weight = (weight / weight.mean()).detach()
    return (weight * F.cross_entropy(logits, labels, reduction="none")).mean()


FORMULAS = {
    "SoftmaxCrossEntropy": of_cross_entropy,
    "LabelSmoothingLoss": of_label_smoothing,
    "SoftmaxFocalLoss": of_focal,
    "LogitAdjustedLoss": of_logit_adjustment,
    "ClassDependentTemperatureLoss": of_temperatures,
    "WeightedCrossEntropy": of_weights,
    "InfluenceBalancedLoss": of_influence,
}


@pytest.mark.parametrize("name", sorted(FORMULAS))
def test_it_is_the_formula_over_k_classes(name, make, frequencies):
    logits, labels, features = a_batch()
    value, gradient = step(make(name), logits, labels, features)

    def formula(logits, labels, features):
        return FORMULAS[name](logits, labels, features, frequencies)

    expected, expected_gradient = step(formula, logits, labels, features)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("name", [name for name in SOFTMAX if name != "LabelSmoothingLoss"])
def test_it_is_the_loss_with_a_background_that_cannot_be(name, make):
    """Of any softmax loss, also one that this file does not know; only smoothing asks for some background."""
    logits, labels, features = a_batch()
    value, gradient = step(make(name), logits, labels, features)
    impossible = torch.cat([logits.detach(), torch.full((len(logits), 1), -1e5, dtype=logits.dtype)], 1)
    expected, expected_gradient = step(make(name), impossible, labels, features)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, expected_gradient[:, :K])
    assert (expected_gradient[:, K] == 0).all()


def test_softmax_eql_leaves_out_tail_classes_and_never_the_label(make):
    loss = make("SoftmaxEqualizationLoss", gamma=1.0)
    logits, labels, features = a_batch()
    _, gradient = step(loss, logits, labels, features)
    is_label = F.one_hot(labels, K).bool()
    spared = loss.tail_mask & ~is_label
    assert (gradient[spared] == 0).all() and (gradient[~spared] != 0).all()


@pytest.mark.parametrize("name", SOFTMAX + SIGMOID)
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_value_gradient_and_scores_are_finite(name, make, scale, dtype):
    loss = make(name)
    logits, labels, features = a_batch(dtype, scale)
    for _ in range(2):
        value, gradient = step(loss, logits, labels, features)
        assert value.isfinite() and gradient.isfinite().all() and gradient.shape == (len(labels), K)
    probs = loss.probs(logits.detach())
    assert probs.shape == (len(labels), K + 1) and (probs[:, K] == 0).all()
    assert ((probs >= 0) & (probs <= 1)).all()


@pytest.mark.parametrize("name", SOFTMAX)
def test_scores_are_the_softmax_over_k(name, make):
    logits = a_batch()[0].detach()
    probs = make(name).probs(logits)
    scale = 30 if name == "LDAMLoss" else 1  # whose logits are cosines
    torch.testing.assert_close(probs[:, :K], (scale * logits).softmax(1))
    assert torch.equal(make(name).predicted_classes(probs), logits.argmax(1))


@pytest.mark.parametrize("name", SOFTMAX + SIGMOID)
def test_no_rows(name, make):
    logits = torch.zeros(0, K, requires_grad=True)
    value = make(name)(logits, torch.zeros(0, dtype=torch.int64), torch.zeros(0, D))
    value.backward()
    assert value == 0 and logits.grad.shape == (0, K)


@pytest.mark.parametrize("name", SOFTMAX)
def test_no_step_looks_at_a_value(name, make):
    logits, labels, features = (x.detach().to("meta") for x in a_batch(torch.float32))
    loss = make(name).to("meta")
    loss(logits.requires_grad_(), labels, features).backward()
    assert logits.grad.shape == logits.shape and loss.probs(logits).shape == (len(labels), K + 1)


@pytest.mark.parametrize("width", [K - 1, K + 2])
def test_other_widths_are_refused(width, make):
    with pytest.raises(ValueError, match=f"takes {K + 1} logits per RoI, got {width}"):
        make("LogitAdjustedLoss")(torch.zeros(2, width), torch.zeros(2, dtype=torch.int64))


def test_post_hoc_correction_of_a_plain_classifier(make, frequencies):
    cls_loss = make("SoftmaxCrossEntropy")
    logits = a_batch()[0].detach()
    scores = LogitAdjustment(cls_loss, frequencies)(cls_loss, logits)
    prior = frequencies.instance_count.double() / frequencies.instance_count.sum()
    torch.testing.assert_close(scores[:, :K], (logits - prior.log()).softmax(1))
    assert (scores[:, K] == 0).all()


def test_class_balanced_loss_with_a_softmax_base_needs_no_background_either(frequencies):
    from eql_d2.losses import ClassBalancedLoss

    logits, labels = torch.randn(20, K), torch.arange(20) % K
    loss = ClassBalancedLoss(K, frequencies=frequencies, beta=0.0, base="softmax")
    torch.testing.assert_close(loss(logits, labels), F.cross_entropy(logits, labels))
    assert loss.probs(logits).shape == (20, K + 1)
