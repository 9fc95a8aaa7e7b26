import math

import pytest
import torch

from eql_d2 import ClassFrequencies, TailRule
from eql_d2.losses import DropLoss, EqualizationLoss, SigmoidCrossEntropy

K = 7  # categories 0 to 4 are tail


def a_batch(gt_classes):
    gt_classes = torch.tensor(gt_classes)
    return (torch.randn(len(gt_classes), K, dtype=torch.float64) * 3).requires_grad_(), gt_classes


def reference(logits, gt_classes, tail, draw):
    """(value, gradient) of the paper's formula, term by term, with the given draw."""
    labels = gt_classes.tolist()
    foreground = [c for c in labels if c < K]
    rho = sum(tail[c] for c in foreground) / len(foreground) if foreground else 1.0
    R, total, gradient = len(labels), 0.0, torch.zeros(len(labels), K, dtype=torch.float64)
    for i, (z_i, c) in enumerate(zip(logits.tolist(), labels)):
        for j in range(K):
            y, p = int(j == c), 1 / (1 + math.exp(-z_i[j]))
            b = 0 if c < K else int(draw[i][j] < rho)
            w = 1 - tail[j] * (1 - y) * (1 - b)
            total -= w * (y * math.log(p) + (1 - y) * math.log(1 - p))
            gradient[i, j] = w * (p - y) / R
    return total / R, gradient


BATCHES = [[0, 3, 5, K, K, 6, K, K], [6, 6, 1, K, K, K, K, 5], [K, K, K, 5, K, K, K, K]]


@pytest.mark.parametrize("rule", [TailRule(), TailRule(groups="r")])
def test_three_steps_equal_the_loop(frequencies, rule):
    loss = DropLoss(K, frequencies=frequencies, tail=rule)
    batches = [a_batch(gt_classes) for gt_classes in BATCHES]
    torch.manual_seed(3)
    draws = [torch.rand(8, K).tolist() for _ in batches]
    torch.manual_seed(3)
    for draw, (logits, gt_classes) in zip(draws, batches):
        value, gradient = reference(logits, gt_classes, rule.mask(frequencies).int().tolist(), draw)
        result = loss(logits, gt_classes)
        result.backward()
        assert result.item() == pytest.approx(value, rel=1e-12)
        torch.testing.assert_close(logits.grad, gradient, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    "gt_classes, share",
    [([0, 1, 5, 6], 0.5), ([0, K, K, 5, 6], 1 / 3), ([K, 0], 1.0), ([6, K], 0.0), ([K, K], 1.0), ([5], 0.0)],
)
def test_rho_is_the_tails_share_of_the_foreground(frequencies, gt_classes, share):
    """And 1, so that nothing is dropped, without foreground; the authors' code has a NaN there."""
    rho = DropLoss(K, frequencies=frequencies).tail_share(torch.tensor(gt_classes))
    torch.testing.assert_close(rho, torch.tensor(share))


@pytest.mark.parametrize("gt_classes", [[0, 1, K, K, K, 4], [K, K, K]], ids=["all tail", "no foreground"])
def test_rho_of_1_is_eql(frequencies, gt_classes):
    logits, gt_classes = a_batch(gt_classes)
    expected = EqualizationLoss(K, frequencies=frequencies)(logits, gt_classes)
    torch.testing.assert_close(DropLoss(K, frequencies=frequencies)(logits, gt_classes), expected)


def test_background_of_rho_1_is_sigmoid_cross_entropys(frequencies):
    losses = SigmoidCrossEntropy(K), DropLoss(K, frequencies=frequencies)
    logits, gt_classes = a_batch([0, K, K])
    expected, gradient = (torch.autograd.grad(loss(logits, gt_classes), logits)[0] for loss in losses)
    torch.testing.assert_close(gradient[1:], expected[1:])


def test_rho_of_0_drops_the_tail_from_all_background(frequencies):
    logits, gt_classes = a_batch([6, K, K])
    DropLoss(K, frequencies=frequencies)(logits, gt_classes).backward()
    assert (logits.grad[:, :5] == 0).all() and (logits.grad[:, 5:] != 0).all()


def test_empty_tail_is_sigmoid_cross_entropy(frequencies):
    logits, gt_classes = a_batch(BATCHES[0])
    loss = DropLoss(K, frequencies=frequencies, tail=TailRule(groups=""))
    torch.testing.assert_close(loss(logits, gt_classes), SigmoidCrossEntropy(K)(logits, gt_classes))


@pytest.mark.parametrize("tail, others", [(1, 3), (1, 1), (9, 1)])
def test_background_is_kept_with_probability_rho(frequencies, tail, others):
    """Within 4 standard deviations, and drawn for each RoI and category by itself."""
    loss = DropLoss(K, frequencies=frequencies)
    gt_classes = torch.tensor([0] * tail + [6] * others + [K] * 4000)
    dropped = loss.draw_dropped(gt_classes)
    rho, background = tail / (tail + others), slice(tail + others, None)
    assert not dropped[: tail + others].any() and not dropped[:, 5:].any()
    kept = (~dropped[background, :5]).double()
    assert abs(kept.mean().item() - rho) < 4 * math.sqrt(rho * (1 - rho) / kept.numel())
    correlation = torch.corrcoef(kept.T) - torch.eye(5)
    assert correlation.abs().max() < 4 / math.sqrt(len(kept))


def test_unknown_categories_take_no_part_beside_the_dropped(frequencies):
    logits, gt_classes = a_batch([0, 6, K])
    negatives = torch.ones(3, K, dtype=torch.bool)
    negatives[:, 5] = False
    DropLoss(K, frequencies=frequencies)(logits, gt_classes, negatives=negatives).backward()
    assert (logits.grad[:, 5] == 0).all() and (logits.grad[:, 6] != 0).all() and logits.grad[0, 0] != 0


@pytest.mark.parametrize("images", [3, 300], ids=["tail", "no tail"])
@pytest.mark.parametrize("gt_classes", [[0, 1], [0], [1]])
def test_one_category(images, gt_classes):
    """All foreground is tail, or there is no tail: nothing is dropped."""
    loss = DropLoss(1, frequencies=ClassFrequencies([images], num_images=500))
    gt_classes = torch.tensor(gt_classes)
    logits = torch.randn(len(gt_classes), 1)
    assert torch.equal(loss(logits, gt_classes), SigmoidCrossEntropy(1)(logits, gt_classes))
