import math

import pytest
import torch
from torch.nn import functional as F

from eql_d2.losses import AsymmetricLoss, SigmoidCrossEntropy, SigmoidFocalLoss

K = 7
ARGUMENTS = [  # gamma_neg, gamma_pos, margin
    (4.0, 1.0, 0.05),
    (4.0, 0.0, 0.05),
    (0.0, 0.0, 0.2),
    (0.5, 0.5, 0.05),
    (2.0, 1.0, 0.0),
]


def make(gamma_neg, gamma_pos, margin):
    return AsymmetricLoss(K, gamma_neg=gamma_neg, gamma_pos=gamma_pos, margin=margin)


@pytest.fixture
def batch():
    logits = torch.randn(40, K, dtype=torch.float64) * 3
    return logits.requires_grad_(), torch.arange(40) % (K + 1)


def reference(logits, gt_classes, gamma_neg, gamma_pos, margin):
    """The paper's formula, term by term."""
    total = 0.0
    for z_i, c in zip(logits.tolist(), gt_classes.tolist()):
        for j in range(K):
            p = 1 / (1 + math.exp(-z_i[j]))
            p_m = max(p - margin, 0.0)
            if j == c:
                total += -((1 - p) ** gamma_pos) * math.log(p)
            else:
                total += -(p_m**gamma_neg) * math.log(1 - p_m)
    return total / len(gt_classes)


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_equals_the_formula(batch, arguments):
    assert make(*arguments)(*batch).item() == pytest.approx(reference(*batch, *arguments), rel=1e-12)


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_gradient_is_the_closed_form(batch, arguments):
    """The whole gradient: the focusing weights are differentiated too.

    dL+/dz = (1 - p)^g+ (g+ p log p + p - 1)
    dL-/dz = p (1 - p) (p_m^g- / (1 - p_m) - g- p_m^(g- - 1) log(1 - p_m)), 0 where p <= margin
    """
    gamma_neg, gamma_pos, margin = arguments
    logits, gt_classes = batch
    loss = make(*arguments)
    loss(logits, gt_classes).backward()
    p = logits.detach().sigmoid()
    positive = (1 - p) ** gamma_pos * (gamma_pos * p * p.log() + p - 1)
    p_m = (p - margin).clamp(min=0)
    slope = p_m**gamma_neg / (1 - p_m) - gamma_neg * p_m ** (gamma_neg - 1) * (1 - p_m).log()
    negative = torch.where(p > margin, p * (1 - p) * slope, 0.0)
    is_positive = F.one_hot(gt_classes, K + 1)[:, :K].bool()
    expected = torch.where(is_positive, positive, negative) / len(gt_classes)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-9, atol=1e-14)
    assert torch.autograd.gradcheck(lambda z: loss(z, gt_classes), (logits,))


def test_without_focus_and_margin_it_is_sigmoid_cross_entropy(batch):
    value = make(0.0, 0.0, 0.0)(*batch)
    torch.testing.assert_close(value, SigmoidCrossEntropy(K)(*batch), rtol=1e-12, atol=0)


def test_with_one_gamma_and_no_margin_it_is_focal(batch):
    value = make(2.0, 2.0, 0.0)(*batch)
    focal = 2 * SigmoidFocalLoss(K, alpha=0.5, gamma=2.0)(*batch)
    torch.testing.assert_close(value, focal, rtol=1e-12, atol=0)


@pytest.mark.parametrize("gamma_neg", [0.0, 0.5, 1.0, 4.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_easy_negatives_have_exactly_no_gradient(gamma_neg, dtype):
    p = torch.tensor([[0.001, 0.04, 0.0499999, 0.05, 0.06, 0.5, 0.9]], dtype=dtype)
    logits = p.logit()
    logits[0, 3] = torch.tensor(0.05, dtype=dtype).logit()
    logits.requires_grad_()
    value = make(gamma_neg, 1.0, 0.05)(logits, torch.tensor([K]))
    value.backward()
    easy = logits.detach().sigmoid() <= 0.05
    assert easy.sum() >= 3
    assert (logits.grad[easy] == 0).all() and (logits.grad[~easy] > 0).all()
    assert logits.grad.isfinite().all() and value.isfinite()


def test_a_background_row_is_all_negative():
    logits = torch.zeros(1, K, requires_grad=True)
    make(0.0, 0.0, 0.0)(logits, torch.tensor([K])).backward()
    torch.testing.assert_close(logits.grad, torch.full((1, K), 0.5))


def test_a_far_positive_still_learns():
    """The authors' clamp at 1e-8 gives it no gradient."""
    logits = torch.full((1, K), -30.0, requires_grad=True)
    AsymmetricLoss(K)(logits, torch.tensor([2])).backward()
    torch.testing.assert_close(logits.grad, F.one_hot(torch.tensor([2]), K) * -1.0)


@pytest.mark.parametrize("margin", [0.0, 1e-12, 0.05, 0.9])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 4.0])
def test_extreme_logits(gamma, margin):
    logits = torch.tensor([[1e4, -1e4, 1e4, -1e4, 100, -100, 0]], requires_grad=True)
    for label in (0, 1, K):
        logits.grad = None
        value = make(gamma, gamma, margin)(logits, torch.tensor([label]))
        value.backward()
        assert value.isfinite() and logits.grad.isfinite().all()
        assert logits.grad[0, 1] == (-1 if label == 1 else 0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"gamma_neg": -1.0}, "gamma_neg must be >= 0, got -1.0"),
        ({"gamma_pos": float("nan")}, "gamma_pos must be >= 0, got nan"),
        ({"margin": 1.0}, r"margin must be in \[0, 1\), got 1.0"),
        ({"prior_prob": 0.0}, r"prior_prob must be in \(0, 1\), got 0.0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        AsymmetricLoss(K, **arguments)
