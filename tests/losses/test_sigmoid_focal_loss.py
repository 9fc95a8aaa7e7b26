import math

import pytest
import torch
from detectron2.modeling import ROI_HEADS_REGISTRY
from fvcore.nn import sigmoid_focal_loss
from torch.nn import functional as F

from eql_d2.losses import SigmoidCrossEntropy, SigmoidFocalLoss

K = 7


@pytest.fixture
def batch():
    logits = torch.randn(40, K, dtype=torch.float64) * 3
    return logits.requires_grad_(), torch.arange(40) % (K + 1)


def reference(logits, gt_classes, alpha, gamma):
    """Eq. 5 of the paper, term by term."""
    total = 0.0
    for z_i, c in zip(logits.tolist(), gt_classes.tolist()):
        for j in range(K):
            p = 1 / (1 + math.exp(-z_i[j]))
            p_t, alpha_t = (p, alpha) if j == c else (1 - p, 1 - alpha)
            total += -alpha_t * (1 - p_t) ** gamma * math.log(p_t)
    return total / len(gt_classes)


ARGUMENTS = [(0.25, 2.0), (0.5, 0.0), (0.9, 0.5), (0.1, 5.0)]


@pytest.mark.parametrize("alpha, gamma", ARGUMENTS)
def test_equals_the_formula(batch, alpha, gamma):
    value = SigmoidFocalLoss(K, alpha=alpha, gamma=gamma)(*batch).item()
    assert value == pytest.approx(reference(*batch, alpha, gamma), rel=1e-12)


@pytest.mark.parametrize("alpha, gamma", ARGUMENTS)
def test_gradient_is_the_closed_form(batch, alpha, gamma):
    """dL/dz = alpha (1 - p)^g (g p log p + p - 1) for a positive, and mirrored for a negative."""
    logits, gt_classes = batch
    loss = SigmoidFocalLoss(K, alpha=alpha, gamma=gamma)
    loss(logits, gt_classes).backward()
    p = logits.detach().sigmoid()
    positive = alpha * (1 - p) ** gamma * (gamma * p * p.log() + p - 1)
    negative = (1 - alpha) * p**gamma * (p - gamma * (1 - p) * (1 - p).log())
    is_positive = F.one_hot(gt_classes, K + 1)[:, :K].bool()
    expected = torch.where(is_positive, positive, negative) / len(gt_classes)
    torch.testing.assert_close(logits.grad, expected, rtol=1e-10, atol=1e-15)
    assert torch.autograd.gradcheck(lambda z: loss(z, gt_classes), (logits,))


def test_gamma_0_is_sigmoid_cross_entropy(batch):
    """Halved, as alpha = 0.5 weighs positives and negatives alike."""
    value = 2 * SigmoidFocalLoss(K, alpha=0.5, gamma=0.0)(*batch)
    torch.testing.assert_close(value, SigmoidCrossEntropy(K)(*batch), rtol=1e-12, atol=0)


def test_equals_fvcore(batch):
    logits, gt_classes = batch[0].detach().float(), batch[1]
    target = F.one_hot(gt_classes, K + 1)[:, :K].float()
    expected = sigmoid_focal_loss(logits, target, alpha=0.25, gamma=2, reduction="sum") / 40
    torch.testing.assert_close(SigmoidFocalLoss(K)(logits, gt_classes), expected)


def test_a_background_row_is_all_negative():
    logits = torch.zeros(1, K, requires_grad=True)
    SigmoidFocalLoss(K, alpha=0.25, gamma=0.0)(logits, torch.tensor([K])).backward()
    torch.testing.assert_close(logits.grad, torch.full((1, K), 0.75 * 0.5))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_extreme_logits(gamma):
    """fvcore's gradient is NaN here for gamma 0.5."""
    logits = torch.tensor([[1e4, -1e4, 1e4, -1e4]], requires_grad=True)
    for label, expected in ((0, [0.0, 0, 0.75, 0]), (1, [0.75, -0.25, 0.75, 0])):
        logits.grad = None
        SigmoidFocalLoss(4, gamma=gamma)(logits, torch.tensor([label])).backward()
        torch.testing.assert_close(logits.grad, torch.tensor([expected]))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"alpha": -1.0}, r"alpha must be in \(0, 1\), got -1.0"),
        ({"gamma": -0.1}, "gamma must be >= 0, got -0.1"),
        ({"gamma": float("nan")}, "gamma must be >= 0, got nan"),
        ({"prior_prob": 1.0}, r"prior_prob must be in \(0, 1\), got 1.0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SigmoidFocalLoss(K, **arguments)


@pytest.mark.parametrize("prefix", ["", "Cascade", "Res5"])
def test_named_heads(prefix):
    head = ROI_HEADS_REGISTRY.get(f"{prefix}FocalROIHeads")
    assert head.loss_name == "SigmoidFocalLoss"
    assert issubclass(head, ROI_HEADS_REGISTRY.get(f"LongTail{prefix}ROIHeads"))
