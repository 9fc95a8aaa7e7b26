import math
from fractions import Fraction

import pytest
import torch
from torch.nn import functional as F

from eql_d2 import ClassFrequencies
from eql_d2.losses import (
    ClassBalancedLoss,
    SigmoidCrossEntropy,
    SigmoidFocalLoss,
    SoftmaxCrossEntropy,
)

K = 7
COUNTS = [1, 20, 10, 30, 150, 202, 900]  # instances of the fixture
BASES = ["sigmoid", "softmax", "focal"]


def reference_weight(beta, counts=COUNTS):
    """(1 - beta) / (1 - beta^n) by exact arithmetic, divided by its mean over the categories that occur."""
    beta = Fraction(beta)
    raw = [(1 - beta) / (1 - beta ** max(n, 1)) for n in counts]
    seen = [w for w, n in zip(raw, counts) if n > 0]
    return [float(w / (sum(seen) / len(seen))) for w in raw] + [1.0]


def reference(logits, gt_classes, beta, base, gamma):
    weight, total = reference_weight(beta), 0.0
    for z, c in zip(logits.tolist(), gt_classes.tolist()):
        if base == "softmax":
            total += weight[c] * (math.log(sum(map(math.exp, z))) - z[c])
            continue
        for j in range(K):
            p = 1 / (1 + math.exp(-z[j] if j == c else z[j]))
            total += weight[c] * (1 - p) ** (gamma if base == "focal" else 0) * -math.log(p)
    return total / len(gt_classes)


def a_batch(base):
    logits = torch.randn(40, K + (base == "softmax"), dtype=torch.float64) * 3
    return logits.requires_grad_(), torch.arange(40) % (K + 1)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("beta", [0.9, 0.999])
def test_equals_the_formula(frequencies, base, beta):
    loss = ClassBalancedLoss(K, frequencies=frequencies, beta=beta, base=base, gamma=0.7)
    batch = a_batch(base)
    assert loss(*batch).item() == pytest.approx(reference(*batch, beta, base, 0.7), rel=1e-12)


@pytest.mark.parametrize("base", BASES)
def test_gradient_is_the_closed_form(frequencies, base):
    """w_{y_i} / R times the base's own: p - y, or (1 - p_t)^gamma (gamma p_t log p_t + p_t - 1) towards z_t."""
    logits, gt_classes = a_batch(base)
    ClassBalancedLoss(K, frequencies=frequencies, base=base)(logits, gt_classes).backward()
    z, y = logits.detach(), F.one_hot(gt_classes, K + 1)[:, : logits.shape[1]]
    if base == "softmax":
        expected = z.softmax(1) - y
    elif base == "sigmoid":
        expected = z.sigmoid() - y
    else:
        sign = 2 * y - 1
        p_t = (sign * z).sigmoid()
        expected = sign * (1 - p_t) ** 0.5 * (0.5 * p_t * p_t.log() + p_t - 1)
    weight = torch.tensor(reference_weight(0.999), dtype=torch.float64)[gt_classes]
    expected = weight[:, None] * expected / len(z)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-11, atol=1e-15)


def base_loss(base, batch):
    if base == "focal":  # without alpha, which 0.5 halves
        return 2 * SigmoidFocalLoss(K, alpha=0.5, gamma=0.5)(*batch)
    return {"sigmoid": SigmoidCrossEntropy, "softmax": SoftmaxCrossEntropy}[base](K)(*batch)


@pytest.mark.parametrize("base", BASES)
def test_beta_zero_is_the_base_loss(frequencies, base):
    loss, batch = ClassBalancedLoss(K, frequencies=frequencies, beta=0.0, base=base), a_batch(base)
    assert (loss.class_weight == 1).all()
    torch.testing.assert_close(loss(*batch), base_loss(base, batch), rtol=1e-14, atol=0)


@pytest.mark.parametrize("base", BASES)
def test_uniform_counts_are_the_base_loss(base):
    uniform = ClassFrequencies([7] * K, [13] * K, num_images=100)
    loss, batch = ClassBalancedLoss(K, frequencies=uniform, base=base), a_batch(base)
    torch.testing.assert_close(loss(*batch), base_loss(base, batch), rtol=1e-12, atol=0)


def test_focal_base_without_gamma_is_the_sigmoid_base(frequencies):
    batch = a_batch("focal")
    focal = ClassBalancedLoss(K, frequencies=frequencies, base="focal", gamma=0.0)
    sigmoid = ClassBalancedLoss(K, frequencies=frequencies)
    torch.testing.assert_close(focal(*batch), sigmoid(*batch), rtol=1e-12, atol=0)


def test_near_one_beta_is_inverse_frequency(frequencies):
    """Where 1 - beta^n without expm1 would have lost all but a few digits."""
    loss = ClassBalancedLoss(K, frequencies=frequencies, beta=1 - 1e-12)
    inverse = torch.tensor([1 / n for n in COUNTS], dtype=torch.float64)
    expected = inverse / inverse.mean()
    torch.testing.assert_close(loss.class_weight[:K], expected, rtol=1e-8, atol=0)


@pytest.mark.parametrize("base", BASES)
def test_width_prior_and_scores_are_those_of_the_base(frequencies, base):
    loss = ClassBalancedLoss(K, frequencies=frequencies, base=base)
    logits = torch.randn(9, loss.num_logits)
    if base == "softmax":
        other = SoftmaxCrossEntropy(K)
        assert loss.num_logits == K + 1 and loss.prior_prob is None
    else:
        other = SigmoidCrossEntropy(K)
        assert loss.num_logits == K and loss.prior_prob == 1 / K
    probs = loss.probs(logits)
    assert torch.equal(probs, other.probs(logits))
    assert torch.equal(loss.predicted_classes(probs), other.predicted_classes(probs))


def test_one_category_has_a_prior():
    one = ClassBalancedLoss(1, frequencies=ClassFrequencies([5], [5]))
    assert one.prior_prob == 0.5


@pytest.mark.parametrize("base", BASES)
def test_a_background_roi_weighs_one(frequencies, base):
    logits = a_batch(base)[0].detach()[:1].requires_grad_()
    background = torch.tensor([K])
    ClassBalancedLoss(K, frequencies=frequencies, base=base)(logits, background).backward()
    (expected,) = torch.autograd.grad(base_loss(base, (logits, background)), logits)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("base", ["sigmoid", "focal"])
def test_negatives_leave_unknown_categories_out(frequencies, base):
    logits, gt_classes = a_batch(base)
    negatives = torch.ones(len(logits), K, dtype=torch.bool)
    negatives[:, 5] = False
    loss = ClassBalancedLoss(K, frequencies=frequencies, base=base)
    loss(logits, gt_classes, negatives=negatives).backward()
    assert (logits.grad[:, 5] == 0).all() and (logits.grad[:, 6] != 0).all()


def test_a_category_without_a_sample_has_no_part_in_the_mean():
    counts = [0, 5, 0, 20]
    loss = ClassBalancedLoss(4, frequencies=ClassFrequencies([0, 5, 0, 9], counts), beta=0.9)
    expected = torch.tensor(reference_weight(0.9, counts), dtype=torch.float64)
    torch.testing.assert_close(loss.class_weight, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("base", BASES)
def test_extreme_logits_are_finite(frequencies, base):
    loss = ClassBalancedLoss(K, frequencies=frequencies, base=base)
    logits = (torch.randn(16, loss.num_logits).sign() * 1e4).requires_grad_()
    value = loss(logits, torch.arange(16) % (K + 1))
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()


def test_wrong_arguments_are_refused(frequencies):
    for arguments, message in [
        ({"beta": 1.0}, r"beta must be in \[0, 1\), got 1.0"),
        ({"base": "hinge"}, "'sigmoid', 'softmax' or 'focal', got 'hinge'"),
        ({"gamma": -1.0}, r"gamma must be in \[0, inf\), got -1.0"),
    ]:
        with pytest.raises(ValueError, match=message):
            ClassBalancedLoss(K, frequencies=frequencies, **arguments)
    with pytest.raises(ValueError, match="has no instance counts"):
        ClassBalancedLoss(2, frequencies=ClassFrequencies([1, 2])).require_frequencies()
