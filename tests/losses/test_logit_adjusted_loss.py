import math

import pytest
import torch
from torch.nn import functional as F

from eql_d2 import ClassFrequencies
from eql_d2.losses import LogitAdjustedLoss

K = 7
COUNTS = [1, 20, 10, 30, 150, 202, 900]  # instances of the fixture


def reference_adjustment(tau, counts=COUNTS):
    """tau log pi, shifted to 0 for the most frequent category; background 0."""
    log_pi = [math.log(max(n, 1) / sum(counts)) for n in counts]
    return [tau * (x - max(log_pi)) for x in log_pi] + [0.0]


def reference(logits, gt_classes, tau):
    total = 0.0
    for z, c in zip(logits.tolist(), gt_classes.tolist()):
        z = [z_j + a_j for z_j, a_j in zip(z, reference_adjustment(tau))]
        total += math.log(sum(map(math.exp, z))) - z[c]
    return total / len(gt_classes)


@pytest.fixture
def batch():
    logits = torch.randn(40, K + 1, dtype=torch.float64) * 3
    return logits.requires_grad_(), torch.arange(40) % (K + 1)


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_equals_the_formula(frequencies, batch, tau):
    loss = LogitAdjustedLoss(K, frequencies=frequencies, tau=tau)
    assert loss(*batch).item() == pytest.approx(reference(*batch, tau), rel=1e-12)


def test_gradient_is_the_closed_form(frequencies, batch):
    """dL/dz_i = (softmax(z_i + tau log pi) - y_i) / R."""
    logits, gt_classes = batch
    LogitAdjustedLoss(K, frequencies=frequencies)(logits, gt_classes).backward()
    adjusted = logits.detach() + torch.tensor(reference_adjustment(1.0), dtype=torch.float64)
    expected = (adjusted.softmax(1) - F.one_hot(gt_classes, K + 1)) / len(logits)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-12, atol=1e-15)


def test_tau_zero_is_cross_entropy(frequencies, batch):
    assert torch.equal(LogitAdjustedLoss(K, frequencies=frequencies, tau=0.0)(*batch), F.cross_entropy(*batch))


def test_uniform_counts_are_cross_entropy(batch):
    """Also against background, which the shift of log pi is for."""
    uniform = ClassFrequencies([7] * K, [13] * K, num_images=100)
    assert torch.equal(LogitAdjustedLoss(K, frequencies=uniform)(*batch), F.cross_entropy(*batch))


def test_scores_are_those_of_the_raw_logits(frequencies):
    logits = torch.randn(5, K + 1)
    assert torch.equal(LogitAdjustedLoss(K, frequencies=frequencies).probs(logits), logits.softmax(1))


def test_background_and_the_most_frequent_category_are_not_adjusted(frequencies):
    """A rare object is pulled up harder than in cross-entropy; background and the head compete as they did."""
    loss = LogitAdjustedLoss(K, frequencies=frequencies)
    logits = torch.zeros(3, K + 1, requires_grad=True)
    loss(logits, torch.tensor([0, 6, K])).backward()
    rare, frequent, background = logits.grad * 3
    assert rare[0] < 1 / (K + 1) - 1
    assert frequent[K] == background[6]
    assert rare[K] == rare[6]
    assert background[0] < background[6]  # a background RoI hardly pushes the rare down


def test_a_category_without_a_sample_counts_as_one():
    some = LogitAdjustedLoss(3, frequencies=ClassFrequencies([0, 5, 9], [0, 5, 20]))
    one = LogitAdjustedLoss(3, frequencies=ClassFrequencies([1, 5, 9], [1, 5, 20]))
    assert torch.equal(some.adjustment, one.adjustment) and some.adjustment.isfinite().all()


def test_extreme_logits_are_finite(frequencies):
    logits = (torch.randn(16, K + 1).sign() * 1e4).requires_grad_()
    value = LogitAdjustedLoss(K, frequencies=frequencies)(logits, torch.arange(16) % (K + 1))
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()


def test_wrong_arguments_are_refused(frequencies):
    with pytest.raises(ValueError, match=r"tau must be in \[0, inf\), got -1"):
        LogitAdjustedLoss(K, frequencies=frequencies, tau=-1.0)
    with pytest.raises(ValueError, match="has no instance counts"):
        LogitAdjustedLoss(2, frequencies=ClassFrequencies([1, 2])).require_frequencies()
