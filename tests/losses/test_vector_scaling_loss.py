import math

import pytest
import torch
from torch.nn import functional as F

from eql_d2 import ClassFrequencies
from eql_d2.losses import ClassDependentTemperatureLoss, LogitAdjustedLoss, VectorScalingLoss

K = 7
COUNTS = [1, 20, 10, 30, 150, 202, 900]  # instances of the fixture


def reference(logits, gt_classes, gamma, tau):
    total = 0.0
    for z, y in zip(logits.tolist(), gt_classes.tolist()):
        for j, n in enumerate(COUNTS):
            z[j] = z[j] / (max(COUNTS) / n) ** gamma + tau * math.log(n / max(COUNTS))
        total += math.log(sum(map(math.exp, z))) - z[y]
    return total / len(gt_classes)


@pytest.fixture
def batch():
    logits = torch.randn(40, K + 1, dtype=torch.float64) * 3
    return logits.requires_grad_(), torch.arange(40) % (K + 1)


@pytest.mark.parametrize("gamma, tau", [(0.3, 1.0), (0.1, 0.5)])
def test_equals_the_formula(frequencies, batch, gamma, tau):
    loss = VectorScalingLoss(K, frequencies=frequencies, gamma=gamma, tau=tau)
    assert loss(*batch).item() == pytest.approx(reference(*batch, gamma, tau), rel=1e-12)


def test_gradient_is_that_of_autograd(frequencies, batch):
    loss = VectorScalingLoss(K, frequencies=frequencies)
    assert torch.autograd.gradcheck(lambda z: loss(z, batch[1]), batch[:1])


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.7])
def test_without_offsets_it_is_cdt(frequencies, batch, gamma):
    loss = VectorScalingLoss(K, frequencies=frequencies, gamma=gamma, tau=0.0)
    cdt = ClassDependentTemperatureLoss(K, frequencies=frequencies, gamma=gamma)
    assert torch.equal(loss(*batch), cdt(*batch))


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_without_temperatures_it_is_logit_adjustment(frequencies, batch, tau):
    loss = VectorScalingLoss(K, frequencies=frequencies, gamma=0.0, tau=tau)
    adjusted = LogitAdjustedLoss(K, frequencies=frequencies, tau=tau)
    assert torch.equal(loss(*batch), adjusted(*batch))


def test_uniform_counts_are_cross_entropy(batch):
    uniform = ClassFrequencies([7] * K, [13] * K, num_images=100)
    assert torch.equal(VectorScalingLoss(K, frequencies=uniform)(*batch), F.cross_entropy(*batch))


def test_scores_are_those_of_the_logits_as_they_are(frequencies):
    logits = torch.randn(5, K + 1)
    assert torch.equal(VectorScalingLoss(K, frequencies=frequencies).probs(logits), logits.softmax(1))


def test_the_rarest_of_lvis_v1_is_divided_by_26():
    """As the docstring says, which is why the configs choose another gamma."""
    lvis = ClassFrequencies.from_dataset("lvis_v1_train")
    assert round(VectorScalingLoss(1203, frequencies=lvis).temperature.max().item()) == 26


def test_wrong_arguments_are_refused(frequencies):
    for name in ("gamma", "tau"):
        with pytest.raises(ValueError, match=rf"{name} must be in \[0, inf\), got -1"):
            VectorScalingLoss(K, frequencies=frequencies, **{name: -1.0})
