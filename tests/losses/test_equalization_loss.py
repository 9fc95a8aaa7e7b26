import math

import pytest
import torch

from eql_d2 import ClassFrequencies, TailRule
from eql_d2.losses import EqualizationLoss, SigmoidCrossEntropy

K = 7


def reference(logits, gt_classes, tail, exclude_background=True):
    """Eq. 3 and 4 of the paper, term by term."""
    total = 0.0
    for z_i, c in zip(logits.tolist(), gt_classes.tolist()):
        E = 1 if c < K or not exclude_background else 0
        for j in range(K):
            y = 1 if j == c else 0
            w = 1 - E * tail[j] * (1 - y)
            p = 1 / (1 + math.exp(-z_i[j]))
            total += -w * (y * math.log(p) + (1 - y) * math.log(1 - p))
    return total / len(gt_classes)


@pytest.fixture
def batch():
    logits = torch.randn(40, K, dtype=torch.float64) * 3
    return logits.requires_grad_(), torch.arange(40) % (K + 1)


@pytest.mark.parametrize("rule", [TailRule(), TailRule(groups="r"), TailRule(lambda_=0.0105)])
def test_equals_the_formula(frequencies, batch, rule):
    loss = EqualizationLoss(K, frequencies=frequencies, tail=rule)
    logits, gt_classes = batch
    expected = reference(logits, gt_classes, rule.mask(frequencies).int().tolist())
    assert loss(logits, gt_classes).item() == pytest.approx(expected, rel=1e-12)


def test_without_the_exclusion_of_background(frequencies, batch):
    loss = EqualizationLoss(K, frequencies=frequencies, exclude_background=False)
    logits, gt_classes = batch
    tail = TailRule().mask(frequencies)
    expected = reference(logits, gt_classes, tail.int().tolist(), exclude_background=False)
    value = loss(logits, gt_classes)
    assert value.item() == pytest.approx(expected, rel=1e-12)
    value.backward()
    assert (logits.grad[gt_classes == K][:, tail] == 0).all() and (logits.grad[gt_classes == K][:, ~tail] > 0).all()
    # What the image is known not to contain, and nothing else, is a negative.
    label = torch.arange(K) == gt_classes[:, None]
    known = label | (torch.rand(40, K) < 0.5)
    assert loss(logits, gt_classes, negatives=label) < loss(logits, gt_classes, negatives=known) < value


def test_gradient_is_the_closed_form(frequencies, batch):
    """dL/dz = w (p - y) / R."""
    logits, gt_classes = batch
    tail = TailRule().mask(frequencies)
    loss = EqualizationLoss(K, frequencies=frequencies)
    loss(logits, gt_classes).backward()
    expected = torch.zeros_like(logits)
    for i, c in enumerate(gt_classes.tolist()):
        for j in range(K):
            y = float(j == c)
            w = 0.0 if (c < K and tail[j] and not y) else 1.0
            expected[i, j] = w * (logits[i, j].sigmoid() - y) / len(gt_classes)
    torch.testing.assert_close(logits.grad, expected.detach(), rtol=1e-12, atol=1e-15)
    assert torch.autograd.gradcheck(lambda z: loss(z, gt_classes), (logits,))


def test_empty_tail_is_sigmoid_cross_entropy(frequencies):
    logits, gt_classes = torch.randn(64, K), torch.randint(0, K + 1, (64,))
    a = EqualizationLoss(K, frequencies=frequencies, tail=TailRule(groups=""))(logits, gt_classes)
    b = SigmoidCrossEntropy(K)(logits, gt_classes)
    assert torch.equal(a, b)


def test_background_still_pushes_the_tail_down(frequencies):
    logits = torch.zeros(2, K, requires_grad=True)
    EqualizationLoss(K, frequencies=frequencies)(logits, torch.tensor([K, 6])).backward()
    background, foreground = logits.grad
    tail = TailRule().mask(frequencies)
    assert (background > 0).all()
    assert (foreground[tail] == 0).all() and foreground[5] > 0 and foreground[6] < 0


def test_negatives_leave_unknown_categories_out(frequencies, batch):
    logits, gt_classes = batch
    negatives = torch.ones(len(logits), K, dtype=torch.bool)
    negatives[:, 5] = False
    loss = EqualizationLoss(K, frequencies=frequencies)
    loss(logits, gt_classes, negatives=negatives).backward()
    assert (logits.grad[:, 5] == 0).all() and (logits.grad[:, 6] != 0).all()
    logits.grad = None
    everything = loss(logits, gt_classes, negatives=torch.ones_like(negatives))
    assert torch.equal(everything, loss(logits, gt_classes))


def test_the_tail_is_logged_once_with_a_warning_for_frequent_classes(log_lines):
    lvis = ClassFrequencies.from_dataset("lvis_v1_train")
    for _ in range(3):  # as in a cascade; a lambda that no other test logs
        EqualizationLoss(1203, frequencies=lvis, tail=TailRule(lambda_=0.0017701))
    summary, warning = log_lines
    assert "876 of 1203 classes are tail: 337 rare, 461 common, 78 frequent" in summary
    assert "takes frequent classes" in warning
