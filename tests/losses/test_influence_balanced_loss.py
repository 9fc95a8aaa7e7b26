import math

import pytest
import torch
from torch.nn import functional as F

from eql_d2 import ClassFrequencies
from eql_d2.losses import InfluenceBalancedLoss
from eql_d2.losses.base import RoIs

K, D = 7, 5
COUNTS = [1, 20, 10, 30, 150, 202, 900]  # instances of the fixture


def softmax(z):
    total = sum(map(math.exp, z))
    return [math.exp(x) / total for x in z]


def reference_weight(logits, gt_classes, features):
    """lambda / (||p - y||_1 ||h||_1 + 0.001), divided by its mean over the foreground; 1 for background."""
    inverse = [1 / n for n in COUNTS]
    weight = []
    for z, c, h in zip(logits.tolist(), gt_classes.tolist(), features.tolist()):
        error = sum(abs(p - (j == c)) for j, p in enumerate(softmax(z)))
        influence = error * sum(map(abs, h)) + 1e-3
        weight.append(None if c == K else K * inverse[c] / sum(inverse) / influence)
    foreground = [w for w in weight if w is not None]
    return [1.0 if w is None else w * len(foreground) / sum(foreground) for w in weight]


def reference(logits, gt_classes, features):
    weight = reference_weight(logits, gt_classes, features)
    total = 0.0
    for w, z, c in zip(weight, logits.tolist(), gt_classes.tolist()):
        total += w * -math.log(softmax(z)[c])
    return total / len(gt_classes)


@pytest.fixture
def batch():
    logits = torch.randn(40, K + 1, dtype=torch.float64) * 3
    features = torch.randn(40, D, dtype=torch.float64)  # also negative ones
    return logits.requires_grad_(), torch.arange(40) % (K + 1), features.requires_grad_()


@pytest.mark.parametrize("detach", [True, False])
def test_equals_the_formula(frequencies, batch, detach):
    loss = InfluenceBalancedLoss(K, frequencies=frequencies, detach=detach)
    assert loss(*batch).item() == pytest.approx(reference(*batch), rel=1e-12)


def test_weight_has_batch_mean_one(frequencies, batch):
    logits, gt_classes, features = batch
    loss = InfluenceBalancedLoss(K, frequencies=frequencies)
    rest = 1 - logits.softmax(dim=1).gather(1, gt_classes[:, None])[:, 0]
    weight = loss.weight(rest, RoIs(gt_classes, features))
    assert weight.mean().item() == pytest.approx(1, rel=1e-12)
    assert weight[gt_classes < K].mean().item() == pytest.approx(1, rel=1e-12)
    assert (weight[gt_classes == K] == 1).all()
    scaled = loss.weight(rest, RoIs(gt_classes, features * 1e6))
    assert scaled.mean().item() == pytest.approx(1, rel=1e-12)


def test_gradient_of_a_constant_weight_is_the_closed_form(frequencies, batch):
    """dL/dz_i = w_i (p_i - y_i) / R, and no gradient to the features."""
    logits, gt_classes, features = batch
    InfluenceBalancedLoss(K, frequencies=frequencies)(*batch).backward()
    weight = torch.tensor(reference_weight(*batch), dtype=torch.float64)
    error = logits.detach().softmax(1) - F.one_hot(gt_classes, K + 1)
    expected = weight[:, None] * error / len(logits)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-11, atol=1e-15)
    assert features.grad is None


def test_gradient_without_detach_is_the_full_one(frequencies, batch):
    """Against the formula written with autograd's own operations, and by finite differences."""
    logits, gt_classes, features = batch
    loss = InfluenceBalancedLoss(K, frequencies=frequencies, detach=False)
    ours = torch.autograd.grad(loss(*batch), (logits, features))
    error = (logits.softmax(1) - F.one_hot(gt_classes, K + 1)).abs().sum(1)
    class_weight = torch.tensor([1 / n for n in COUNTS] + [0.0], dtype=torch.float64)[gt_classes]
    class_weight = class_weight * K / sum(1 / n for n in COUNTS)
    weight = class_weight / (error * features.abs().sum(1) + 1e-3)
    weight = weight * (gt_classes < K).sum() / weight.sum()
    weight = torch.where(gt_classes < K, weight, 1)
    value = (weight * F.cross_entropy(logits, gt_classes, reduction="none")).mean()
    for one, other in zip(ours, torch.autograd.grad(value, (logits, features))):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-14)
    assert ours[1].abs().sum() > 0
    rows = torch.tensor([0, 3, 6, 7, 12])
    inputs = (logits.detach()[rows].requires_grad_(), features.detach()[rows].requires_grad_())
    assert torch.autograd.gradcheck(lambda z, h: loss(z, gt_classes[rows], h), inputs)


def test_background_is_plain_cross_entropy(frequencies, batch):
    logits, gt_classes, features = batch
    InfluenceBalancedLoss(K, frequencies=frequencies)(*batch).backward()
    (expected,) = torch.autograd.grad(F.cross_entropy(logits, gt_classes), logits)
    background = gt_classes == K
    torch.testing.assert_close(logits.grad[background], expected[background], rtol=1e-12, atol=0)
    assert not torch.allclose(logits.grad[~background], expected[~background])


def test_equal_influence_is_cross_entropy():
    """Uniform counts, logits and features: nothing to tell the RoIs apart by."""
    uniform = ClassFrequencies([7] * K, [13] * K, num_images=100)
    logits = torch.zeros(8, K + 1, dtype=torch.float64)
    gt_classes, features = torch.arange(8), torch.ones(8, D, dtype=torch.float64)
    value = InfluenceBalancedLoss(K, frequencies=uniform)(logits, gt_classes, features)
    torch.testing.assert_close(value, F.cross_entropy(logits, gt_classes), rtol=1e-12, atol=0)


def test_cross_entropy_until_start_iter(frequencies, batch):
    """Its steps are counted as tests/losses/test_iterations.py says."""
    loss = InfluenceBalancedLoss(K, frequencies=frequencies, start_iter=2)
    values = [loss(*batch).item() for _ in range(3)]
    plain = F.cross_entropy(*batch[:2]).item()
    assert values == [plain, plain, pytest.approx(reference(*batch), rel=1e-12)]


# ---- edges ----


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("scale", [0.0, 1e4, 1e8])
def test_norms_of_zero_and_beyond_are_safe(frequencies, detach, scale):
    """Features of norm zero, RoIs without an error, huge ones; foreground or not."""
    loss = InfluenceBalancedLoss(K, frequencies=frequencies, detach=detach)
    for gt_classes in (torch.arange(16) % (K + 1), torch.full((16,), K), torch.zeros(16, dtype=int)):
        for logits in (torch.randn(16, K + 1).sign() * 1e4, F.one_hot(gt_classes, K + 1) * 1e4):
            logits = logits.float().requires_grad_()
            features = (torch.randn(16, D) * scale).requires_grad_()
            value = loss(logits, gt_classes, features)
            value.backward()
            assert value.isfinite() and logits.grad.isfinite().all()
            assert features.grad is None or features.grad.isfinite().all()


def test_a_category_without_a_sample_counts_as_one():
    zero = InfluenceBalancedLoss(3, frequencies=ClassFrequencies([0, 5, 9], [0, 5, 20]))
    assert zero.class_weight.isfinite().all()
    torch.testing.assert_close(zero.class_weight[0], 5 * zero.class_weight[1])


def test_wrong_arguments_are_refused(frequencies, batch):
    with pytest.raises(ValueError, match="has no instance counts"):
        InfluenceBalancedLoss(2, frequencies=ClassFrequencies([1, 2])).require_frequencies()
    with pytest.raises(ValueError, match="call it with features"):
        InfluenceBalancedLoss(K, frequencies=frequencies)(*batch[:2])


def test_fp32_is_exact_for_confident_scores(frequencies):
    """1 - p_y of a confident row is far below fp32's distance to 1."""
    logits, gt_classes, features = torch.randn(64, K + 1) * 100, torch.arange(64) % (K + 1), torch.rand(64, D)
    loss, gradients, values = InfluenceBalancedLoss(K, frequencies=frequencies, detach=False), [], []
    for dtype in (torch.float32, torch.float64):
        z = logits.to(dtype).requires_grad_()
        values.append(loss(z, gt_classes, features.to(dtype)))
        gradients.append(torch.autograd.grad(values[-1], z)[0].double())
    torch.testing.assert_close(values[0].double(), values[1], rtol=1e-6, atol=0)
    assert (gradients[0] - gradients[1]).abs().max() < 2e-5 * gradients[1].abs().max()
