import math

import pytest
import torch
from torch.nn import functional as F

from eql_d2 import ClassFrequencies
from eql_d2.losses import ClassDependentTemperatureLoss

K = 7
COUNTS = [1, 20, 10, 30, 150, 202, 900]  # instances of the fixture


def temperatures(gamma):
    return [(max(COUNTS) / n) ** gamma for n in COUNTS] + [1.0]


def reference(logits, gt_classes, gamma):
    total = 0.0
    for z, c in zip(logits.tolist(), gt_classes.tolist()):
        z = [z_j / a_j for z_j, a_j in zip(z, temperatures(gamma))]
        total += math.log(sum(map(math.exp, z))) - z[c]
    return total / len(gt_classes)


@pytest.fixture
def batch():
    logits = torch.randn(40, K + 1, dtype=torch.float64) * 3
    return logits.requires_grad_(), torch.arange(40) % (K + 1)


@pytest.mark.parametrize("gamma", [0.1, 0.3, 1.0])
def test_equals_the_formula(frequencies, batch, gamma):
    loss = ClassDependentTemperatureLoss(K, frequencies=frequencies, gamma=gamma)
    assert loss(*batch).item() == pytest.approx(reference(*batch, gamma), rel=1e-12)


def test_gradient_is_the_closed_form(frequencies, batch):
    """dL/dz_ij = (softmax(z_i / a)_j - y_ij) / (a_j R)."""
    logits, gt_classes = batch
    ClassDependentTemperatureLoss(K, frequencies=frequencies)(logits, gt_classes).backward()
    a = torch.tensor(temperatures(0.1), dtype=torch.float64)
    expected = ((logits.detach() / a).softmax(1) - F.one_hot(gt_classes, K + 1)) / a / len(logits)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-12, atol=1e-15)


def test_gamma_zero_is_cross_entropy(frequencies, batch):
    loss = ClassDependentTemperatureLoss(K, frequencies=frequencies, gamma=0.0)
    assert torch.equal(loss(*batch), F.cross_entropy(*batch))


def test_uniform_counts_are_cross_entropy(batch):
    uniform = ClassFrequencies([7] * K, [13] * K, num_images=100)
    loss = ClassDependentTemperatureLoss(K, frequencies=uniform)
    assert torch.equal(loss(*batch), F.cross_entropy(*batch))


def test_scores_are_those_of_the_undivided_logits(frequencies):
    logits = torch.randn(5, K + 1)
    loss = ClassDependentTemperatureLoss(K, frequencies=frequencies)
    assert torch.equal(loss.probs(logits), logits.softmax(1))


def test_background_is_as_warm_as_the_most_frequent_category(frequencies):
    """At equal logits their gradients are equal, and those of a rare category are divided by its temperature."""
    logits = torch.zeros(1, K + 1, requires_grad=True)
    loss = ClassDependentTemperatureLoss(K, frequencies=frequencies, gamma=1.0)
    loss(logits, torch.tensor([1])).backward()
    assert logits.grad[0, K] == logits.grad[0, 6] == 1 / (K + 1)
    torch.testing.assert_close(logits.grad[0, 0], torch.tensor(1 / (K + 1) / 900))


def test_a_category_without_a_sample_counts_as_one():
    some = ClassDependentTemperatureLoss(3, frequencies=ClassFrequencies([0, 5, 9], [0, 5, 20]))
    one = ClassDependentTemperatureLoss(3, frequencies=ClassFrequencies([1, 5, 9], [1, 5, 20]))
    assert torch.equal(some.temperature, one.temperature)


def test_the_rarest_of_lvis_v1_is_divided_by_3():
    """As the docstring says."""
    lvis = ClassFrequencies.from_dataset("lvis_v1_train")
    loss = ClassDependentTemperatureLoss(1203, frequencies=lvis)
    assert round(loss.temperature.max().item(), 1) == 3.0 and loss.temperature.min() == 1


def test_extreme_logits_are_finite(frequencies):
    logits = (torch.randn(16, K + 1).sign() * 1e4).requires_grad_()
    loss = ClassDependentTemperatureLoss(K, frequencies=frequencies)
    value = loss(logits, torch.arange(16) % (K + 1))
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()


def test_wrong_arguments_are_refused(frequencies):
    with pytest.raises(ValueError, match=r"gamma must be in \[0, inf\), got -0.1"):
        ClassDependentTemperatureLoss(K, frequencies=frequencies, gamma=-0.1)
    with pytest.raises(ValueError, match="has no instance counts"):
        ClassDependentTemperatureLoss(2, frequencies=ClassFrequencies([1, 2])).require_frequencies()
