import math

import pytest
import torch
from torch.nn import functional as F

from eql_d2.losses import LabelSmoothingLoss, SoftmaxCrossEntropy

K = 7


@pytest.fixture
def batch():
    logits = torch.randn(40, K + 1, dtype=torch.float64) * 3
    return logits.requires_grad_(), torch.arange(40) % (K + 1)


def smoothed_labels(gt_classes, epsilon, apply_on):
    """q of the paper, for C = K + 1 classes."""
    q = torch.zeros(len(gt_classes), K + 1, dtype=torch.float64)
    for i, c in enumerate(gt_classes.tolist()):
        e = epsilon if (c < K or apply_on == "all") else 0.0
        for k in range(K + 1):
            q[i, k] = (1 - e) * (k == c) + e / (K + 1)
    return q


def reference(logits, q):
    """The formula, term by term."""
    total = 0.0
    for z_i, q_i in zip(logits.tolist(), q.tolist()):
        log_sum = math.log(sum(math.exp(z) for z in z_i))
        total += -sum(q_ik * (z_ik - log_sum) for q_ik, z_ik in zip(q_i, z_i))
    return total / len(logits)


@pytest.mark.parametrize("apply_on", ["all", "fg"])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.7])
def test_equals_the_formula(batch, epsilon, apply_on):
    q = smoothed_labels(batch[1], epsilon, apply_on)
    value = LabelSmoothingLoss(K, epsilon=epsilon, apply_on=apply_on)(*batch).item()
    assert value == pytest.approx(reference(batch[0], q), rel=1e-12)


@pytest.mark.parametrize("apply_on", ["all", "fg"])
def test_gradient_is_the_closed_form(batch, apply_on):
    """dL/dz = (p - q) / R."""
    logits, gt_classes = batch
    loss = LabelSmoothingLoss(K, epsilon=0.2, apply_on=apply_on)
    loss(logits, gt_classes).backward()
    q = smoothed_labels(gt_classes, 0.2, apply_on)
    expected = (logits.detach().softmax(1) - q) / len(gt_classes)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-12, atol=1e-15)
    assert torch.autograd.gradcheck(lambda z: loss(z, gt_classes), (logits,))


def test_epsilon_0_is_cross_entropy(batch):
    expected = SoftmaxCrossEntropy(K)(*batch)
    assert torch.equal(LabelSmoothingLoss(K, epsilon=0.0)(*batch), expected)
    value = LabelSmoothingLoss(K, epsilon=0.0, apply_on="fg")(*batch)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)


def test_default_is_torchs(batch):
    expected = F.cross_entropy(*batch, label_smoothing=0.1)
    torch.testing.assert_close(LabelSmoothingLoss(K)(*batch), expected, rtol=1e-12, atol=0)


def test_a_background_roi_is_smoothed_only_where_asked():
    """At the smoothed labels' own logits the gradient is zero: it shows the label that a RoI is given."""
    background = torch.tensor([K])
    for apply_on, other in (("all", "fg"), ("fg", "all")):
        q = smoothed_labels(background, 0.1, apply_on)
        logits = q.clamp(min=1e-30).log().requires_grad_()
        LabelSmoothingLoss(K, apply_on=apply_on)(logits, background).backward()
        assert logits.grad.abs().max() < 1e-12
        logits.grad = None
        LabelSmoothingLoss(K, apply_on=other)(logits, background).backward()
        assert logits.grad.abs().max() > 1e-2


def test_a_foreground_roi_gives_background_its_share():
    logits = smoothed_labels(torch.tensor([2]), 0.1, "fg").log().requires_grad_()
    LabelSmoothingLoss(K, apply_on="fg")(logits, torch.tensor([2])).backward()
    assert logits.grad.abs().max() < 1e-12
    assert logits.softmax(1)[0, K].item() == pytest.approx(0.1 / (K + 1))


def test_extreme_logits():
    """The loss of a certain and right RoI is what smoothing asks of the others: epsilon K / C x 2e4."""
    logits = torch.full((1, K + 1), -1e4)
    logits[0, 1] = 1e4
    logits.requires_grad_()
    value = LabelSmoothingLoss(K, epsilon=0.1)(logits, torch.tensor([1]))
    value.backward()
    assert value.item() == pytest.approx(0.1 * K / (K + 1) * 2e4)
    assert logits.grad[0, 0].item() == pytest.approx(-0.1 / (K + 1))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"epsilon": 1.0}, r"epsilon must be in \[0, 1\), got 1.0"),
        ({"epsilon": -0.1}, r"epsilon must be in \[0, 1\), got -0.1"),
        ({"apply_on": "bg"}, "apply_on must be 'all' or 'fg', got 'bg'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LabelSmoothingLoss(K, **arguments)
