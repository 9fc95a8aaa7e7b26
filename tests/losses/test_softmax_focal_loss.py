import math

import pytest
import torch
from torch.nn import functional as F

from eql_d2.losses import SoftmaxCrossEntropy, SoftmaxFocalLoss

K = 7
GAMMAS = [0.0, 0.5, 1.0, 2.0, 3.5]


@pytest.fixture
def batch():
    logits = torch.randn(40, K + 1, dtype=torch.float64) * 3
    return logits.requires_grad_(), torch.arange(40) % (K + 1)


def reference(logits, gt_classes, gamma):
    """The formula, term by term."""
    total = 0.0
    for z_i, c in zip(logits.tolist(), gt_classes.tolist()):
        p = math.exp(z_i[c]) / sum(math.exp(z) for z in z_i)
        total += -((1 - p) ** gamma) * math.log(p)
    return total / len(gt_classes)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_equals_the_formula(batch, gamma):
    value = SoftmaxFocalLoss(K, gamma=gamma)(*batch).item()
    assert value == pytest.approx(reference(*batch, gamma), rel=1e-12)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_gradient_is_the_closed_form(batch, gamma):
    """dL/dz_k = (1 - p_y)^(g - 1) (g p_y log p_y + p_y - 1) (y_k - p_k) / R."""
    logits, gt_classes = batch
    loss = SoftmaxFocalLoss(K, gamma=gamma)
    loss(logits, gt_classes).backward()
    p = logits.detach().softmax(1)
    p_y = p.gather(1, gt_classes[:, None])
    factor = (1 - p_y) ** (gamma - 1) * (gamma * p_y * p_y.log() + p_y - 1)
    expected = factor * (F.one_hot(gt_classes, K + 1) - p) / len(gt_classes)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-9, atol=1e-14)
    assert torch.autograd.gradcheck(lambda z: loss(z, gt_classes), (logits,))


def test_gamma_0_is_cross_entropy(batch):
    value = SoftmaxFocalLoss(K, gamma=0.0)(*batch)
    torch.testing.assert_close(value, SoftmaxCrossEntropy(K)(*batch), rtol=1e-12, atol=0)


def test_background_is_a_class_like_any_other():
    """Swapping column K with another, labels and all, changes nothing; an easy background RoI hardly counts."""
    logits, gt_classes = torch.randn(16, K + 1), torch.arange(16) % (K + 1)
    swap = torch.arange(K + 1)
    swap[[2, K]] = torch.tensor([K, 2])
    loss = SoftmaxFocalLoss(K)
    torch.testing.assert_close(loss(logits[:, swap], swap[gt_classes]), loss(logits, gt_classes))

    logits = torch.zeros(2, K + 1)
    logits[0, K], logits[1, K] = 5, -5  # an easy and a hard one
    logits.requires_grad_()
    loss(logits, torch.tensor([K, K])).backward()
    easy, hard = logits.grad.abs().sum(1)
    assert 0 < easy < 1e-3 * hard


@pytest.mark.parametrize("gamma", GAMMAS)
def test_extreme_logits(gamma):
    logits = torch.full((2, K + 1), -1e4)
    logits[:, 1] = 1e4
    logits.requires_grad_()
    value = SoftmaxFocalLoss(K, gamma=gamma)(logits, torch.tensor([1, 0]))  # all right, all wrong
    value.backward()
    assert value == 1e4
    expected = torch.zeros(2, K + 1)
    expected[1, 0], expected[1, 1] = -0.5, 0.5
    torch.testing.assert_close(logits.grad, expected)


def test_a_confident_row_keeps_its_digits_in_fp32():
    """1 - p_y is 2e-9 here; subtracted in fp32 it would be 0."""
    logits, gt_classes = torch.tensor([[20.0, 0.0]]), torch.tensor([0])
    value = SoftmaxFocalLoss(1, gamma=1.0)(logits, gt_classes).item()
    assert value == pytest.approx(math.exp(-40), rel=1e-5)


@pytest.mark.parametrize("gamma", [-0.5, float("nan")])
def test_wrong_arguments(gamma):
    with pytest.raises(ValueError, match=f"gamma must be >= 0, got {gamma}"):
        SoftmaxFocalLoss(K, gamma=gamma)
