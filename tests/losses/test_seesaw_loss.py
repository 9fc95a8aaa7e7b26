import math

import pytest
import torch
from torch.nn import functional as F

from eql_d2.losses import SeesawLoss
from tests.losses.reference_steps import steps_equal_to

K = 7


def softmax(z):
    e = [math.exp(x) for x in z]
    return [x / sum(e) for x in e]


class Reference:
    """The paper's formulas for one RoI at a time; the pair (object, background) is the last two logits."""

    def __init__(self, num_classes=K, p=0.8, q=2.0, epsilon=0.01):
        self.K, self.p, self.q, self.epsilon = num_classes, p, q, epsilon
        self.counts = [0] * num_classes

    def step(self, logits, gt_classes):
        R, K = len(logits), self.K
        for c in gt_classes.tolist():
            if c < K:
                self.counts[c] += 1
        N = [max(n, 1) for n in self.counts]
        total, gradient = 0.0, torch.zeros_like(logits)
        for i, (z, y) in enumerate(zip(logits.tolist(), gt_classes.tolist())):
            pair = softmax(z[K:])
            total -= math.log(pair[int(y == K)])
            for k in range(2):
                gradient[i, K + k] = (pair[k] - (k == int(y == K))) / R
            if y == K:
                continue
            p = softmax(z[:K])
            S = [min(1, N[k] / N[y]) ** self.p * max(1, p[k] / max(p[y], self.epsilon)) ** self.q for k in range(K)]
            S[y] = 1
            denominator = sum(S[k] * math.exp(z[k]) for k in range(K))
            total -= z[y] - math.log(denominator)
            for k in range(K):
                gradient[i, k] = (S[k] * math.exp(z[k]) / denominator - (k == y)) / R
        return total / R, gradient


def batches(num_classes=K, steps=3, R=24):
    """Batches in which the last category never occurs, and the last of which has no foreground."""
    for n in range(steps):
        logits = torch.randn(R, num_classes + 2, dtype=torch.float64) * 3
        gt_classes = (torch.arange(R) ** 2 // 7) % max(num_classes - 1, 1)
        gt_classes[::3] = num_classes
        if n == steps - 1:
            gt_classes[:] = num_classes
        yield logits.requires_grad_(), gt_classes


@pytest.mark.parametrize("arguments", [{}, {"p": 0.3, "q": 0.5, "epsilon": 0.2}, {"p": 0.0}, {"q": 0.0}])
@pytest.mark.parametrize("num_classes", [K, 1])
def test_three_steps_equal_the_formula(num_classes, arguments):
    loss, reference = SeesawLoss(num_classes, **arguments), Reference(num_classes, **arguments)
    for _ in steps_equal_to(reference, loss, batches(num_classes), rel=1e-12, rtol=1e-10):
        assert loss.counts.tolist() == reference.counts and loss.counts.dtype == torch.int64


def test_background_rows_change_nothing():
    """A GPU computes all rows, so as not to wait for how many are foreground; a CPU computes only those."""
    loss = SeesawLoss(K)
    logits, gt_classes = next(batches())
    loss.count(gt_classes)

    def rows_and_gradient(of_categories):
        categories = logits.detach()[:, :K].requires_grad_()
        rows = of_categories(categories, gt_classes)
        rows.sum().backward()
        return rows.detach(), categories.grad

    rows, gradient = rows_and_gradient(loss._of_all_rows)
    torch.testing.assert_close((rows, gradient), rows_and_gradient(loss._of_foreground))
    assert (rows[gt_classes == K] == 0).all() and (gradient[gt_classes == K] == 0).all()


def test_the_step_counts_before_it_weighs():
    """With one RoI of each of two categories there is no rarer one, so the mitigation is 1, also in the first step."""
    logits = torch.randn(2, 4, dtype=torch.float64)
    gt_classes = torch.tensor([0, 1])
    expected = F.cross_entropy(logits[:, :2], gt_classes) + F.cross_entropy(logits[:, 2:], gt_classes * 0)
    torch.testing.assert_close(SeesawLoss(2, q=0.0)(logits, gt_classes), expected)


def test_without_both_factors_it_is_cross_entropy_of_categories_and_of_objectness():
    loss = SeesawLoss(K, p=0.0, q=0.0)
    logits, gt_classes = next(batches())
    foreground = gt_classes < K
    categories = F.cross_entropy(logits[foreground, :K], gt_classes[foreground], reduction="sum")
    objectness = F.cross_entropy(logits[:, K:], (~foreground).long())
    torch.testing.assert_close(loss(logits, gt_classes), categories / len(logits) + objectness)


def test_rarer_categories_are_pushed_down_less_and_frequent_ones_as_before():
    loss = SeesawLoss(3, q=0.0).eval()
    loss.counts += torch.tensor([1, 100, 10000])
    logits = torch.zeros(1, 5, requires_grad=True)
    loss(logits, torch.tensor([1])).backward()
    rare, _, frequent = logits.grad[0, :3]
    torch.testing.assert_close(rare / frequent, torch.tensor(0.01**0.8))


def test_scores_multiply_by_objectness_and_are_one_distribution():
    logits = torch.randn(5, K + 2)
    probs = SeesawLoss(K).probs(logits)
    is_object = logits[:, K:].softmax(1)
    torch.testing.assert_close(probs[:, :K], logits[:, :K].softmax(1) * is_object[:, :1])
    torch.testing.assert_close(probs[:, K], is_object[:, 1])
    torch.testing.assert_close(probs.sum(1), torch.ones(5))


def test_plain_classification_has_no_background():
    loss = SeesawLoss(K, p=0.0, q=0.0)
    logits, labels = torch.randn(2 * K, K, requires_grad=True), torch.arange(2 * K) % K
    value = loss(logits, labels)
    value.backward()
    torch.testing.assert_close(value, F.cross_entropy(logits, labels))
    assert logits.grad.isfinite().all()
    probs = loss.probs(logits)
    torch.testing.assert_close(probs[:, :K], logits.softmax(1))
    assert (probs[:, K] == 0).all()


def test_evaluation_counts_nothing():
    loss = SeesawLoss(K).eval()
    loss(*next(batches()))
    assert (loss.counts == 0).all()


def test_counts_go_on_beyond_fp32():
    """An fp32 count stops at 2^24 = 16.8 million RoIs."""
    loss = SeesawLoss(K)
    loss.counts += 2**24
    loss(torch.zeros(1, K + 2), torch.tensor([3]))
    assert loss.counts[3] == 2**24 + 1


def test_there_is_no_square_matrix():
    """K^2 numbers would be 10^10 here."""
    K = 100_000
    loss = SeesawLoss(K)
    value = loss(torch.zeros(2, K + 2), torch.tensor([3, K]))
    assert value.isfinite()


def test_wrong_arguments_are_refused():
    for name in ("p", "q"):
        with pytest.raises(ValueError, match=rf"{name} must be in \[0, inf\), got -1"):
            SeesawLoss(K, **{name: -1.0})
    with pytest.raises(ValueError, match=r"epsilon must be in \(0, 1\], got 0"):
        SeesawLoss(K, epsilon=0.0)


@pytest.mark.parametrize("gt_classes", [[0, 3, K, K, 6, K], [K] * 6, []])
def test_its_parts_are_a_call(gt_classes):
    """Same value, gradient and counts."""
    gt_classes = torch.tensor(gt_classes, dtype=torch.int64)
    logits = torch.randn(len(gt_classes), K + 2, dtype=torch.float64, requires_grad=True)
    loss, whole = SeesawLoss(K), SeesawLoss(K)
    parts = loss.parts(logits, gt_classes)
    value = whole(logits, gt_classes)
    torch.testing.assert_close(sum(parts.values()), value)
    (gradient,) = torch.autograd.grad(sum(parts.values()), logits)
    torch.testing.assert_close(gradient, torch.autograd.grad(value, logits)[0])
    assert torch.equal(loss.counts, whole.counts)
    if len(gt_classes):
        background = (gt_classes == K).long()
        torch.testing.assert_close(parts["loss_cls_objectness"], F.cross_entropy(logits[:, K:], background))
    assert loss.parts(logits, gt_classes, reduction="none")["loss_cls_categories"].shape == gt_classes.shape
