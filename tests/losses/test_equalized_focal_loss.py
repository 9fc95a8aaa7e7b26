import math

import pytest
import torch

from eql_d2.losses import EqualizedFocalLoss, SigmoidFocalLoss
from tests.losses.reference_steps import steps_equal_to

K = 7


class Reference:
    """The paper's formulas, one RoI and one category at a time, with the gradient by differences in the focal term."""

    def __init__(self, num_classes=K, alpha=0.25, gamma=2.0, scale=8.0):
        self.alpha, self.gamma, self.scale = alpha, gamma, scale
        self.positive = [0.0] * num_classes
        self.negative = [0.0] * num_classes
        self.first = True

    def gamma_of(self, j):
        g = 1.0 if self.first else min(self.positive[j] / (self.negative[j] + 1e-10), 1.0)
        return self.gamma + self.scale * (1 - g)

    def term(self, z, y, gamma):
        p = 1 / (1 + math.exp(-z))
        p_t, alpha_t = (p, self.alpha) if y else (1 - p, 1 - self.alpha)
        return -alpha_t * gamma / self.gamma * (1 - p_t) ** gamma * math.log(p_t)

    def step(self, logits, gt_classes):
        R, K = logits.shape
        total, gradient = 0.0, torch.zeros_like(logits)
        pulled, pushed = [0.0] * K, [0.0] * K
        for i in range(R):
            for j in range(K):
                y, z, gamma, h = gt_classes[i] == j, logits[i, j].item(), self.gamma_of(j), 1e-5
                total += self.term(z, y, gamma)
                slope = (self.term(z + h, y, gamma) - self.term(z - h, y, gamma)) / (2 * h)
                gradient[i, j] = slope / R
                (pulled if y else pushed)[j] += abs(slope)
        self.positive = [a + b for a, b in zip(self.positive, pulled)]
        self.negative = [a + b for a, b in zip(self.negative, pushed)]
        self.first = False
        return total / R, gradient


def batches(num_classes=K, steps=3, R=20):
    """Batches in which the last category never occurs, and the last of which has no foreground."""
    for n in range(steps):
        logits = torch.randn(R, num_classes, dtype=torch.float64) * 2
        gt_classes = torch.arange(R) % max(num_classes - 1, 1)
        gt_classes[::2] = num_classes
        if n == steps - 1:
            gt_classes[:] = num_classes
        yield logits.requires_grad_(), gt_classes


@pytest.mark.parametrize("arguments", [{}, {"alpha": 0.6, "gamma": 0.7, "scale": 3.0}])
@pytest.mark.parametrize("num_classes", [K, 1])
def test_three_steps_equal_the_formula(num_classes, arguments):
    loss, reference = EqualizedFocalLoss(num_classes, **arguments), Reference(num_classes, **arguments)
    for _ in steps_equal_to(reference, loss, batches(num_classes), rel=1e-7, rtol=1e-6, atol=1e-10):
        sums = loss.focal_gradients
        assert sums.positive.tolist() == pytest.approx(reference.positive, rel=1e-6, abs=1e-9)
        assert sums.negative.tolist() == pytest.approx(reference.negative, rel=1e-6)


def test_the_sums_are_those_of_the_gradient_of_autograd():
    """P and N are column sums of R |dL / dz|, the focal term's derivative included."""
    loss = EqualizedFocalLoss(K)
    for logits, gt_classes in batches():
        before = loss.focal_gradients.positive.clone(), loss.focal_gradients.negative.clone()
        loss(logits, gt_classes).backward()
        gradient = len(logits) * logits.grad.abs()
        own = torch.nn.functional.one_hot(gt_classes, K + 1)[:, :K]
        torch.testing.assert_close(loss.focal_gradients.positive, before[0] + (gradient * own).sum(0))
        torch.testing.assert_close(loss.focal_gradients.negative, before[1] + (gradient * (1 - own)).sum(0))


def test_gradient_is_that_of_autograd():
    loss = EqualizedFocalLoss(K).eval()
    loss.focal_gradients.add(torch.rand(K), torch.rand(K))
    logits, gt_classes = next(batches())
    assert torch.autograd.gradcheck(lambda z: loss(z, gt_classes), (logits,))


def test_the_first_step_and_scale_zero_are_focal_loss():
    focal, first, zero = SigmoidFocalLoss(K), EqualizedFocalLoss(K), EqualizedFocalLoss(K, scale=0.0)
    for n, (logits, gt_classes) in enumerate(batches()):
        expected = focal(logits, gt_classes)
        torch.testing.assert_close(zero(logits, gt_classes), expected)
        value = first(logits, gt_classes)
        assert torch.isclose(value, expected) == (n == 0)


def test_focus_is_bounded():
    """g is clamped at 1: a category of positives is focal loss; one of negatives has gamma + scale."""
    loss = EqualizedFocalLoss(3)
    loss.focal_gradients.add(torch.tensor([5.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 2.0]))
    torch.testing.assert_close(loss.category_gamma(), torch.tensor([2, 10, 6], dtype=torch.float64))


def test_unknown_categories_take_no_part_and_add_no_gradient():
    loss = EqualizedFocalLoss(K)
    logits, gt_classes = next(batches())
    known = torch.ones(len(logits), K, dtype=torch.bool)
    known[:, 2] = False
    loss(logits, gt_classes, negatives=known).backward()
    assert (logits.grad[:, 2] == 0).all() and (logits.grad[:, 1] != 0).all()
    assert loss.focal_gradients.positive[2] == loss.focal_gradients.negative[2] == 0


@pytest.mark.parametrize("scale", [1e4, float("inf"), float("nan")])
def test_logits_beyond_all_bounds_do_not_spoil_the_state(scale):
    loss = EqualizedFocalLoss(K)
    logits, gt_classes = next(batches())
    loss(scale * logits.detach(), gt_classes)
    sums = loss.focal_gradients
    assert sums.positive.isfinite().all() and sums.negative.isfinite().all()
    assert loss(logits, gt_classes).isfinite()


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\), got 1"):
        EqualizedFocalLoss(K, alpha=1.0)
    with pytest.raises(ValueError, match=r"gamma must be in \(0, inf\), got 0"):
        EqualizedFocalLoss(K, gamma=0.0)
    with pytest.raises(ValueError, match=r"scale must be in \[0, inf\), got -1"):
        EqualizedFocalLoss(K, scale=-1.0)
