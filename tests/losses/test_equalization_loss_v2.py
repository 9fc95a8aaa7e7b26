import math

import pytest
import torch
from torch.nn import functional as F

from eql_d2.losses import EqualizationLossV2, SigmoidCrossEntropy
from eql_d2.losses.base import SigmoidLoss
from tests.losses.reference_steps import steps_equal_to

K = 7


class Reference:
    """The paper's formulas, one RoI and one category at a time; column K is the background task."""

    def __init__(self, num_classes=K, gamma=12.0, mu=0.8, alpha=4.0):
        self.gamma, self.mu, self.alpha = gamma, mu, alpha
        self.positive = [0.0] * num_classes
        self.negative = [0.0] * num_classes
        self.first = True

    def step(self, logits, gt_classes):
        """(value, gradient) of a step, after which P and N have grown."""
        R, C = logits.shape
        total, gradient = 0.0, torch.zeros_like(logits)
        pulled, pushed = [0.0] * C, [0.0] * C
        for i in range(R):
            for j in range(C):
                y = int(gt_classes[i] == j)
                weight = self.weights(j)[1 - y]
                p = 1 / (1 + math.exp(-logits[i, j].item()))
                total -= weight * (y * math.log(p) + (1 - y) * math.log(1 - p))
                gradient[i, j] = weight * (p - y) / R
                (pulled if y else pushed)[j] += weight * abs(p - y)
        for j in range(C - 1):
            self.positive[j] += pulled[j]
            self.negative[j] += pushed[j]
        self.first = False
        return total / R, gradient

    def weights(self, j):
        """(w+, w-) of column j."""
        if self.first or j == len(self.positive):
            return 1.0, 1.0
        g = self.positive[j] / (self.negative[j] + 1e-10)
        negative = 1 / (1 + math.exp(-self.gamma * (g - self.mu)))
        return 1 + self.alpha * (1 - negative), negative


def batches(num_classes=K, steps=3, R=20):
    """Batches in which the last category never occurs, and the last of which has no foreground."""
    for n in range(steps):
        logits = torch.randn(R, num_classes + 1, dtype=torch.float64) * 2
        gt_classes = torch.arange(R) % max(num_classes - 1, 1)
        gt_classes[::2] = num_classes
        if n == steps - 1:
            gt_classes[:] = num_classes
        yield logits.requires_grad_(), gt_classes


@pytest.mark.parametrize("arguments", [{}, {"gamma": 3.0, "mu": 0.2, "alpha": 1.0}])
@pytest.mark.parametrize("num_classes", [K, 1])
def test_three_steps_equal_the_formula(num_classes, arguments):
    loss, reference = EqualizationLossV2(num_classes, **arguments), Reference(num_classes, **arguments)
    for _ in steps_equal_to(reference, loss, batches(num_classes), rel=1e-12, rtol=1e-11):
        assert loss.gradients.positive.tolist() == pytest.approx(reference.positive, rel=1e-12)
        assert loss.gradients.negative.tolist() == pytest.approx(reference.negative, rel=1e-12)


def test_gradient_is_that_of_autograd():
    loss = EqualizationLossV2(K).eval()
    loss.gradients.positive += torch.rand(K)
    loss.gradients.negative += torch.rand(K)
    logits, gt_classes = next(batches())
    assert torch.autograd.gradcheck(lambda z: loss(z, gt_classes), (logits,))


def test_the_first_step_is_sigmoid_cross_entropy_and_a_background_task():
    logits, gt_classes = next(batches())
    expected = SigmoidCrossEntropy(K)(logits[:, :K], gt_classes)
    is_background = (gt_classes == K).double()
    expected = expected + F.binary_cross_entropy_with_logits(logits[:, K], is_background)
    torch.testing.assert_close(EqualizationLossV2(K)(logits, gt_classes), expected)


def test_weights_of_the_paper():
    """A category with negatives only: w- = 6.8e-5 and w+ = 5; one in balance: 0.92 and 1.33; background: 1 and 1."""
    loss = EqualizationLossV2(2)
    loss.gradients.add(torch.tensor([0.0, 3.0]), torch.tensor([3.0, 3.0]))
    positive, negative = loss.weights()
    assert negative.tolist() == pytest.approx([6.77e-5, 0.9168, 1], rel=1e-3)
    assert positive.tolist() == pytest.approx([4.9997, 1.3327, 1], rel=1e-3)


def test_alpha_zero_leaves_positives_alone():
    loss = EqualizationLossV2(K, alpha=0.0)
    for logits, gt_classes in batches():
        loss(logits, gt_classes)
    positive, negative = loss.weights()
    assert (positive == 1).all() and (negative[:K] < 1).any()


def test_scores_are_those_of_the_authors():
    logits = torch.randn(5, K + 1)
    probs = EqualizationLossV2(K).probs(logits)
    p = logits.sigmoid()
    torch.testing.assert_close(probs, torch.cat([p[:, :K] * (1 - p[:, K:]), p[:, K:]], 1))


def test_accuracy_takes_background_for_what_no_category_is_sure_of():
    loss = EqualizationLossV2(3)
    assert isinstance(loss, SigmoidLoss)
    logits = torch.tensor([[3.0, -9, -9, -9], [3.0, -9, -9, 9], [-1.0, -9, -9, -9]])
    assert loss.predicted_classes(loss.probs(logits)).tolist() == [0, 3, 3]


def test_unknown_categories_take_no_part_and_add_no_gradient():
    loss = EqualizationLossV2(K)
    logits, gt_classes = next(batches())
    known = torch.ones(len(logits), K, dtype=torch.bool)
    known[:, 2] = False
    loss(logits, gt_classes, negatives=known).backward()
    assert (logits.grad[:, 2] == 0).all() and (logits.grad[:, K] != 0).all()
    assert loss.gradients.positive[2] == loss.gradients.negative[2] == 0
    assert (loss.gradients.negative[[0, 1, 3]] > 0).all()


def test_a_second_backward_does_not_count_the_step_twice():
    once, twice = EqualizationLossV2(K), EqualizationLossV2(K)
    logits, gt_classes = next(batches())
    once(logits, gt_classes).backward()
    first = logits.grad.clone()
    value = twice(logits, gt_classes)
    value.backward(retain_graph=True)
    value.backward()
    torch.testing.assert_close(logits.grad, 3 * first)
    assert torch.equal(once.gradients.negative, twice.gradients.negative)


def test_evaluation_changes_no_state():
    loss = EqualizationLossV2(K)
    logits, gt_classes = next(batches())
    loss.eval()(logits, gt_classes)
    assert (loss.gradients.positive == 0).all() and (loss.gradients.negative == 0).all()


@pytest.mark.parametrize("scale", [1e4, float("inf"), float("nan")])
def test_logits_beyond_all_bounds_do_not_spoil_the_state(scale):
    loss = EqualizationLossV2(K)
    logits, gt_classes = next(batches())
    loss(scale * logits.detach(), gt_classes)
    assert loss.gradients.positive.isfinite().all() and loss.gradients.negative.isfinite().all()
    assert loss(logits, gt_classes).isfinite()


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"gamma must be in \(0, inf\), got 0"):
        EqualizationLossV2(K, gamma=0.0)
    with pytest.raises(ValueError, match=r"alpha must be in \[0, inf\), got -1"):
        EqualizationLossV2(K, alpha=-1.0)
