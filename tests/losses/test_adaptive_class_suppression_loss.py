import math

import pytest
import torch
from torch.nn import functional as F

from eql_d2 import ClassFrequencies
from eql_d2.losses import AdaptiveClassSuppressionLoss

K = 7
GROUPS = "rrrccff"  # of the fixture


def a_batch(R=40):
    gt_classes = torch.arange(R) % (K + 4)
    logits = torch.randn(R, K + 1, dtype=torch.float64) * 2
    return logits.requires_grad_(), gt_classes.clamp(max=K)


def reference(logits, gt_classes, draw, threshold, shares):
    """(value, gradient) of the formula, term by term, with the given draw."""
    R, total, gradient = len(gt_classes), 0.0, torch.zeros(len(gt_classes), K + 1, dtype=torch.float64)
    for i, (z_i, c) in enumerate(zip(logits.tolist(), gt_classes.tolist())):
        for j in range(K + 1):
            y, p = int(j == c), 1 / (1 + math.exp(-z_i[j]))
            if y:
                w = 1
            elif c < K:
                w = int(p >= threshold)
            else:
                group = "rcf".index(GROUPS[j])
                w = int(draw[i][group] < shares[group])
            total -= w * (y * math.log(p) + (1 - y) * math.log(1 - p))
            gradient[i, j] = w * (p - y) / R
    return total / R, gradient


@pytest.mark.parametrize("threshold, shares", [(0.7, (0.01, 0.1, 1.0)), (0.4, (0.3, 0.5, 0.8))])
def test_three_steps_equal_the_loop(frequencies, threshold, shares):
    loss = AdaptiveClassSuppressionLoss(K, frequencies=frequencies, score_threshold=threshold, background_shares=shares)
    batches = [a_batch() for _ in range(3)]
    torch.manual_seed(3)
    draws = [torch.rand(40, 4).tolist() for _ in batches]
    torch.manual_seed(3)
    for draw, (logits, gt_classes) in zip(draws, batches):
        value, gradient = reference(logits, gt_classes, draw, threshold, shares)
        result = loss(logits, gt_classes)
        result.backward()
        assert result.item() == pytest.approx(value, rel=1e-12)
        torch.testing.assert_close(logits.grad, gradient, rtol=1e-12, atol=1e-15)


def test_no_threshold_and_all_background_is_sigmoid_cross_entropy_over_k_plus_1(frequencies):
    loss = AdaptiveClassSuppressionLoss(K, frequencies=frequencies, score_threshold=0.0, background_shares=(1, 1, 1))
    logits, gt_classes = a_batch()
    target = F.one_hot(gt_classes, K + 1).double()
    expected = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(logits)
    torch.testing.assert_close(loss(logits, gt_classes), expected)


def test_nothing_suppressed_trains_positives_only(frequencies):
    loss = AdaptiveClassSuppressionLoss(K, frequencies=frequencies, score_threshold=1.0, background_shares=(0, 0, 0))
    logits, gt_classes = a_batch()
    loss(logits, gt_classes).backward()
    assert torch.equal(logits.grad != 0, F.one_hot(gt_classes, K + 1).bool())


def test_shares_of_the_background_push_each_group(frequencies):
    """1, 10 and 100 %, within 4 standard deviations; one draw for a RoI and group, whatever the scores."""
    N = 20000
    loss = AdaptiveClassSuppressionLoss(K, frequencies=frequencies)
    logits = torch.full((N, K + 1), 9.0)
    trained = loss.draw_trained(logits, torch.full((N,), K)).double()
    rare, common, frequent, background = trained.split([3, 2, 2, 1], dim=1)
    for columns, share in ((rare, 0.01), (common, 0.1)):
        assert (columns == columns[:, :1]).all()
        assert abs(columns[:, 0].mean().item() - share) < 4 * math.sqrt(share * (1 - share) / N)
    assert frequent.all() and background.all()
    together = (rare[:, 0] * common[:, 0]).mean().item()
    assert abs(together - 0.001) < 4 * math.sqrt(0.001 / N)


def test_objects_push_only_what_they_are_mistaken_for(frequencies):
    loss = AdaptiveClassSuppressionLoss(K, frequencies=frequencies)
    logits = torch.full((1, K + 1), -2.0)
    logits[0, [1, 4, K]] = torch.tensor([0.0, 0.9, 1.0])  # scores 0.5, 0.71, 0.73
    logits.requires_grad_()
    loss(logits, torch.tensor([0])).backward()
    assert logits.grad[0].sign().tolist() == [-1, 0, 0, 0, 1, 0, 0, 1]


def test_scores_and_prior(frequencies):
    loss = AdaptiveClassSuppressionLoss(K, frequencies=frequencies)
    logits = torch.randn(5, K + 1)
    assert torch.equal(loss.probs(logits), logits.sigmoid())
    assert loss.num_logits == K + 1 and loss.prior_prob == 0.01


def test_unknown_categories_take_no_part_and_background_always_does(frequencies):
    loss = AdaptiveClassSuppressionLoss(K, frequencies=frequencies, background_shares=(1, 1, 1))
    logits, gt_classes = a_batch()
    negatives = F.one_hot(gt_classes, K + 1).bool()[:, :K]
    loss(logits, gt_classes, negatives=negatives).backward()
    is_background = gt_classes == K
    assert (logits.grad[is_background, K] != 0).all() and (logits.grad[is_background, :K] == 0).all()
    assert (logits.grad[~is_background, :K].count_nonzero(dim=1) == 1).all()


@pytest.mark.parametrize("gt_classes", [[0, 1], [0], [1]])
def test_one_category(gt_classes):
    loss = AdaptiveClassSuppressionLoss(1, frequencies=ClassFrequencies([400], num_images=500))
    logits = torch.zeros(len(gt_classes), 2, requires_grad=True)
    loss(logits, torch.tensor(gt_classes)).backward()
    # An object trains its own column, background both.
    expected = [[-0.5, 0.0] if c == 0 else [0.5, -0.5] for c in gt_classes]
    torch.testing.assert_close(len(gt_classes) * logits.grad, torch.tensor(expected))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"score_threshold": 1.5}, r"score_threshold must be in \[0, 1\], got 1.5"),
        ({"background_shares": (0.1, 0.2)}, r"three numbers in \[0, 1\].*got \(0.1, 0.2\)"),
        ({"background_shares": (0.1, 0.2, 2)}, r"three numbers in \[0, 1\].*got \(0.1, 0.2, 2\)"),
    ],
)
def test_wrong_arguments(frequencies, arguments, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveClassSuppressionLoss(K, frequencies=frequencies, **arguments)
