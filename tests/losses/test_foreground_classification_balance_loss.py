import math

import pytest
import torch
from torch.nn import functional as F

from eql_d2.losses import BackgroundSigmoidLoss, ForegroundClassificationBalanceLoss
from tests.losses.reference_steps import steps_equal_to

K = 5


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


class Reference:
    """The paper's formulas, one RoI and category at a time."""

    def __init__(self, num_classes, alpha=0.85, score_threshold=0.7):
        self.K, self.alpha, self.threshold = num_classes, alpha, score_threshold
        self.sums = [[0.0] * num_classes for _ in range(num_classes)]
        self.counts = [0] * num_classes

    def confusion(self, y, j):
        return max(self.sums[y][j] / max(self.counts[y], 1), 1e-3)

    def step(self, logits, gt_classes):
        total, gradient, K = 0.0, torch.zeros_like(logits), self.K
        for i, (z, y) in enumerate(zip(logits.tolist(), gt_classes.tolist())):
            p = [sigmoid(z[j]) * (1 - sigmoid(z[K])) for j in range(K)]
            for j in range(K + 1):
                foreground_pair = y < K and j < K
                delta = self.alpha * math.log(self.confusion(y, j) / self.confusion(j, y)) if foreground_pair else 0
                if not foreground_pair or j == y or p[j] >= p[y] or p[j] >= self.threshold:
                    x = z[j] + delta
                    total += math.log(1 + math.exp(-x)) if j == y else math.log(1 + math.exp(x))
                    gradient[i, j] = (sigmoid(x) - (j == y)) / len(logits)
        for z, y in zip(logits.tolist(), gt_classes.tolist()):
            if y < K:
                e = [math.exp(x) for x in z[:K]]
                self.counts[y] += 1
                self.sums[y] = [s + x / sum(e) for s, x in zip(self.sums[y], e)]
        return total / len(logits), gradient


def batches(num_classes=K, steps=4, R=30):
    """Category 0 in most of the foreground, the last never; the last batch has background only."""
    generator = torch.Generator().manual_seed(1)
    for n in range(steps):
        logits = torch.randn(R, num_classes + 1, generator=generator, dtype=torch.float64) * 2
        logits[:, 0] += 1.5  # which much is taken for
        gt_classes = torch.randint(max(num_classes - 1, 1), (R,), generator=generator)
        gt_classes[::2] = 0
        gt_classes[::3] = num_classes
        if n == steps - 1:
            gt_classes[:] = num_classes
        yield logits.requires_grad_(), gt_classes


@pytest.mark.parametrize("arguments", [{}, {"alpha": 1.5, "score_threshold": 0.3}, {"score_threshold": 1.0}])
@pytest.mark.parametrize("num_classes", [K, 1])
def test_steps_equal_the_formula(num_classes, arguments):
    loss = ForegroundClassificationBalanceLoss(num_classes, **arguments)
    reference = Reference(num_classes, **arguments)
    for _ in steps_equal_to(reference, loss, batches(num_classes), rel=1e-12, rtol=1e-10):
        torch.testing.assert_close(loss.confused, torch.tensor(reference.sums, dtype=torch.float64))
        assert loss.counts.tolist() == reference.counts


def test_without_margins_and_with_all_competing_it_is_cross_entropy():
    loss = ForegroundClassificationBalanceLoss(K, alpha=0.0, score_threshold=0.0)
    for logits, gt_classes in batches():
        target = F.one_hot(gt_classes, K + 1).double()
        expected = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(logits)
        torch.testing.assert_close(loss(logits, gt_classes), expected)


def test_what_is_taken_for_another_gets_a_margin_over_it_and_that_none():
    loss = ForegroundClassificationBalanceLoss(2, alpha=1.0)
    loss.confused += torch.tensor([[9.0, 1.0], [6.0, 4.0]])  # of 10 RoIs each: 1 is taken for 0 six times as often
    loss.counts += 10
    log6 = math.log(6)
    expected = torch.tensor([[0.0, -log6], [log6, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(loss.margin(torch.tensor([0, 1])), expected)


def test_an_overflow_adds_nothing_and_evaluation_counts_nothing():
    loss = ForegroundClassificationBalanceLoss(K)
    logits, gt_classes = next(batches())
    loss.eval()(logits, gt_classes)
    assert loss.counts.sum() == 0
    broken = logits.detach().clone()
    broken[1, 2] = torch.nan
    loss.train()(broken, gt_classes)
    assert loss.confused.isfinite().all() and loss.counts.sum() == (gt_classes < K).sum() - int(gt_classes[1] < K)


def test_scores_are_those_of_a_classifier_of_background():
    logits = torch.randn(6, K + 1)
    probs = ForegroundClassificationBalanceLoss(K).probs(logits)
    torch.testing.assert_close(probs, BackgroundSigmoidLoss(K, prior_prob=0.1).probs(logits))
