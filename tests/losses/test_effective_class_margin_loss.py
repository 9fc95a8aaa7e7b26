import math

import pytest
import torch

from eql_d2 import ClassFrequencies
from eql_d2.losses import EffectiveClassMarginLoss

K = 7
COUNTS = [1, 9, 10, 11, 100, 101, 400]  # images of the fixture


def reference(logits, gt_classes, counts=COUNTS, ratio=6.3313):
    """(value, gradient) as the authors write it: exponentials weighed by the reciprocal margins."""
    n = [*counts, ratio * sum(counts)]
    R, C = logits.shape
    total, gradient = 0.0, torch.zeros_like(logits)
    for i in range(R):
        for j in range(C):
            positive, negative = n[j], sum(n) - n[j]
            roots = positive**0.25 + negative**0.25
            margin, negative_margin = negative**0.25 / roots, positive**0.25 / roots
            z = logits[i, j].item()
            up, down = math.exp(z) / margin, math.exp(-z) / negative_margin
            a = negative / positive
            weight = a * math.log((1 + a) / a)
            y = int(gt_classes[i] == j)
            total -= weight * math.log((up if y else down) / (up + down))
            gradient[i, j] = 2 * weight * (up / (up + down) - y) / R
    return total / R, gradient


@pytest.fixture
def batch():
    logits = torch.randn(40, K + 1, dtype=torch.float64) * 3
    return logits.requires_grad_(), torch.arange(40) % (K + 1)


@pytest.mark.parametrize("ratio", [6.3313, 0.5])
def test_equals_the_formula(frequencies, batch, ratio):
    loss = EffectiveClassMarginLoss(K, frequencies=frequencies, background_ratio=ratio)
    expected, expected_gradient = reference(batch[0].detach(), batch[1], ratio=ratio)
    value = loss(*batch)
    value.backward()
    assert value.item() == pytest.approx(expected, rel=1e-11)
    torch.testing.assert_close(batch[0].grad, expected_gradient, rtol=1e-10, atol=1e-15)


def test_a_single_category():
    loss = EffectiveClassMarginLoss(1, frequencies=ClassFrequencies([5]))
    logits, gt_classes = torch.randn(6, 2, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 1])
    expected, _ = reference(logits, gt_classes, counts=[5])
    assert loss(logits, gt_classes).item() == pytest.approx(expected, rel=1e-12)


def test_weights_keep_their_digits():
    """a log(1 + 1 / a) tends to 1 - 1 / (2a); in float32, (1 + a) / a has lost up to 5 % at LVIS's counts."""
    lvis = ClassFrequencies.from_dataset("lvis_v1_train")
    a = EffectiveClassMarginLoss(1203, frequencies=lvis).imbalance
    weight = a * (1 / a).log1p()
    rare = a > 1e4
    torch.testing.assert_close(weight[rare], (1 - 1 / (2 * a))[rare], rtol=1e-8, atol=0)
    single = a.float()
    assert ((single * ((1 + single) / single).log()) / weight - 1).abs().max() > 0.03


def test_a_rare_category_starts_low_and_is_pushed_down_less(frequencies):
    logits = torch.zeros(1, K + 1, requires_grad=True)
    EffectiveClassMarginLoss(K, frequencies=frequencies)(logits, torch.tensor([K])).backward()
    pushes = logits.grad[0, :K]
    assert (pushes[1:] > pushes[:-1]).all()  # the fixture's counts ascend


def test_scores_are_of_z_and_multiply_by_objectness(frequencies):
    logits = torch.randn(5, K + 1)
    p = logits.sigmoid()
    probs = EffectiveClassMarginLoss(K, frequencies=frequencies).probs(logits)
    torch.testing.assert_close(probs, torch.cat([p[:, :K] * (1 - p[:, K:]), p[:, K:]], 1))


def test_the_bias_starts_at_zero(frequencies):
    assert EffectiveClassMarginLoss(K, frequencies=frequencies).prior_prob == 0.5


def test_a_category_without_an_image_counts_as_one():
    none = EffectiveClassMarginLoss(3, frequencies=ClassFrequencies([0, 5, 9]))
    one = EffectiveClassMarginLoss(3, frequencies=ClassFrequencies([1, 5, 9]))
    assert torch.equal(none.imbalance, one.imbalance)


def test_wrong_arguments_are_refused(frequencies):
    with pytest.raises(ValueError, match=r"background_ratio must be in \(0, inf\), got 0"):
        EffectiveClassMarginLoss(K, frequencies=frequencies, background_ratio=0.0)
