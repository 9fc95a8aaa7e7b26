import pytest
import torch
from torch.nn import functional as F

from eql_d2.losses import fused

R, K = 64, 7
TAIL = torch.tensor([True, True, False, True, False, False, False])
WEIGHTS = {
    "none": {},
    "tail": {"tail": TAIL},
    "positive weight": {"positive_weight": 0.3},
    "row weight": {"row_weight": torch.rand(R, dtype=torch.float64) + 0.5},
    "negatives": {"negatives": torch.arange(R * K).view(R, K) % 3 > 0},
}
WEIGHTS["all"] = {key: value for weights in WEIGHTS.values() for key, value in weights.items()}


@pytest.fixture
def batch():
    return torch.randn(R, K, dtype=torch.float64) * 4, torch.arange(R) % (K + 1)


def weights_of(gt_classes, tail=None, positive_weight=1.0, row_weight=None, negatives=None):
    """(R, K) y and w, as the docstrings say."""
    y = F.one_hot(gt_classes, K + 1)[:, :K].bool()
    w = 1 + (positive_weight - 1) * y.double()
    if tail is not None:
        w[(gt_classes < K)[:, None] & tail & ~y] = 0
    if row_weight is not None:
        w = w * row_weight[:, None]
    return y, w if negatives is None else w * negatives


def expected_loss(logits, gt_classes, gamma=0.0, **weights):
    y, w = weights_of(gt_classes, **weights)
    p_t = torch.where(y, logits, -logits).sigmoid()
    return -(w * (1 - p_t) ** gamma * p_t.log()).sum() / R


def value_and_gradient(loss, logits):
    logits = logits.clone().requires_grad_()
    value = loss(logits).mean()
    value.backward()
    return value.detach(), logits.grad


@pytest.mark.parametrize("name", WEIGHTS)
def test_cross_entropy_equals_autograd_through_the_formula(batch, name):
    logits, gt_classes = batch
    actual = value_and_gradient(lambda z: fused.sigmoid_cross_entropy(z, gt_classes, **WEIGHTS[name]), logits)
    expected = value_and_gradient(lambda z: expected_loss(z, gt_classes, **WEIGHTS[name]), logits)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("name", ["none", "positive weight", "row weight", "negatives"])
def test_focal_equals_autograd_through_the_formula(batch, gamma, name):
    logits, gt_classes = batch
    actual = value_and_gradient(lambda z: fused.sigmoid_focal(z, gt_classes, gamma, **WEIGHTS[name]), logits)
    expected = value_and_gradient(lambda z: expected_loss(z, gt_classes, gamma, **WEIGHTS[name]), logits)
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("scale, shift", [(1, -7), (3, 0), (30, 0)])
@pytest.mark.parametrize("gamma", [None, 2.0])
def test_fp32_is_within_1e_6_of_float64(scale, shift, gamma):
    K = 1203
    logits, gt_classes = torch.randn(R, K) * scale + shift, torch.randint(0, K + 1, (R,))

    def loss(z):
        if gamma is None:
            return fused.sigmoid_cross_entropy(z, gt_classes, tail=torch.arange(K) % 3 > 0)
        return fused.sigmoid_focal(z, gt_classes, gamma)

    value, gradient = value_and_gradient(loss, logits)
    expected, expected_gradient = value_and_gradient(loss, logits.double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    assert (gradient - expected_gradient).abs().max() < 1e-6 * expected_gradient.abs().max()


@pytest.fixture(params=["cross-entropy", "focal", "softmax"])
def loss(request):
    gt_classes = torch.arange(R) % K
    left_out = torch.zeros(R, K, dtype=torch.bool)
    return {
        "cross-entropy": lambda z: fused.sigmoid_cross_entropy(z, gt_classes, tail=TAIL).mean(),
        "focal": lambda z: fused.sigmoid_focal(z, gt_classes, 2.0).mean(),
        "softmax": lambda z: fused.softmax_cross_entropy_without(left_out, z, gt_classes).mean(),
    }[request.param]


def test_a_second_backward_gives_the_same_gradient(loss):
    """Although the first one gave the buffer away, and its new owner may have changed it."""
    logits = torch.randn(R, K, requires_grad=True)
    value = loss(logits)
    (first,) = torch.autograd.grad(2 * value, logits, retain_graph=True)
    kept = first.clone()
    first.zero_()
    (second,) = torch.autograd.grad(2 * value, logits)
    assert torch.equal(second, kept)


def test_a_second_backward_of_a_freed_graph_is_refused(loss):
    value = loss(torch.randn(R, K, requires_grad=True))
    value.backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        value.backward()


def test_a_second_derivative_is_refused(loss):
    logits = torch.randn(R, K, requires_grad=True)
    with pytest.raises(RuntimeError, match="has no derivative: call backward without create_graph"):
        torch.autograd.grad(loss(logits), logits, create_graph=True)


def test_no_gradient_is_made_where_none_is_needed(loss):
    logits = torch.randn(R, K, requires_grad=True)
    expected = loss(logits).detach()
    with torch.no_grad():
        assert torch.equal(loss(logits), expected)
    value = loss(logits.detach())
    assert torch.equal(value, expected) and not value.requires_grad
