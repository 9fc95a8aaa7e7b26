import math
from itertools import permutations
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers

from eql_d2 import ClassFrequencies
from eql_d2.losses import FederatedLoss, SigmoidCrossEntropy

K = 7
IMAGES = [1, 9, 10, 11, 100, 101, 400]  # of the fixture


def a_batch(gt_classes=(0, 3, K, K, 5, 3)):
    gt_classes = torch.tensor(gt_classes)
    return (torch.randn(len(gt_classes), K, dtype=torch.float64) * 3).requires_grad_(), gt_classes


def subset_by_loop(gt_classes, exponentials, size, power):
    """S, if category j's clock rings at exponentials[j] / n_j^power."""
    subset = sorted({c for c in gt_classes.tolist() if c < K})
    others = [j for j in range(K) if j not in subset]
    others.sort(key=lambda j: exponentials[j] / IMAGES[j] ** power)
    return subset + others[: max(0, size - len(subset))]


def reference(logits, gt_classes, subset):
    """(value, gradient), term by term."""
    R, total, gradient = len(gt_classes), 0.0, torch.zeros(len(gt_classes), K, dtype=torch.float64)
    for i, (z_i, c) in enumerate(zip(logits.tolist(), gt_classes.tolist())):
        for j in subset:
            y, p = int(j == c), 1 / (1 + math.exp(-z_i[j]))
            total -= y * math.log(p) + (1 - y) * math.log(1 - p)
            gradient[i, j] = (p - y) / R
    return total / R, gradient


@pytest.mark.parametrize("size, power", [(5, 0.5), (2, 0.5), (4, 1.0)])
def test_three_steps_equal_the_loop(frequencies, size, power):
    loss = FederatedLoss(K, frequencies=frequencies, subset_size=size, power=power)
    torch.manual_seed(3)
    draws = [torch.empty(K, dtype=torch.float64).exponential_().tolist() for _ in range(3)]
    batches = [a_batch(), a_batch([K, K, 6, 6]), a_batch([K, K])]
    torch.manual_seed(3)
    for draw, (logits, gt_classes) in zip(draws, batches):
        subset = subset_by_loop(gt_classes, draw, size, power)
        value, gradient = reference(logits, gt_classes, subset)
        result = loss(logits, gt_classes)
        result.backward()
        assert result.item() == pytest.approx(value, rel=1e-12)
        torch.testing.assert_close(logits.grad, gradient, rtol=1e-12, atol=1e-15)


def inclusion(weights, size):
    """Chance of each category to be drawn, by going through every order of draws without replacement."""
    chance = [0.0] * len(weights)
    for order in permutations(range(len(weights)), size):
        p, left = 1.0, sum(weights)
        for j in order:
            p, left = p * weights[j] / left, left - weights[j]
        for j in order:
            chance[j] += p
    return torch.tensor(chance)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_negatives_are_drawn_without_replacement_by_their_weight(frequencies, power):
    """As torch.multinomial draws them, which Detectron2 takes; within 4.5 standard deviations."""
    loss = FederatedLoss(K, frequencies=frequencies, subset_size=4, power=power)
    N, present = 4000, torch.tensor([2, K])
    drawn = torch.stack([loss.draw_subset(present) for _ in range(N)])
    assert (drawn.sum(1) == 4).all() and drawn[:, 2].all()
    others = [0, 1, 3, 4, 5, 6]
    weights = [IMAGES[j] ** power for j in others]
    expected = inclusion(weights, 3)
    sigma = (expected * (1 - expected) / N).sqrt() + 1e-9
    assert ((drawn[:, others].double().mean(0) - expected).abs() < 4.5 * sigma).all()
    multinomial = torch.tensor(weights).expand(N, -1).multinomial(3)
    peer = torch.zeros(N, len(others)).scatter_(1, multinomial, 1).mean(0)
    assert ((peer - expected).abs() < 4.5 * sigma).all()


def test_equals_detectron2s_given_the_same_subset(frequencies):
    loss = FederatedLoss(K, frequencies=frequencies, subset_size=5)
    logits, gt_classes = a_batch()
    torch.manual_seed(0)
    subset = loss.draw_subset(gt_classes).nonzero()[:, 0]
    detectron2 = SimpleNamespace(
        use_fed_loss=True,
        fed_loss_num_classes=None,
        fed_loss_cls_weights=None,
        get_fed_loss_classes=lambda *args, **kwargs: subset,
    )
    with_background = torch.cat([logits, torch.randn(len(logits), 1)], 1)
    expected = FastRCNNOutputLayers.sigmoid_cross_entropy_loss(detectron2, with_background, gt_classes)
    torch.manual_seed(0)
    torch.testing.assert_close(loss(logits, gt_classes), expected)


@pytest.mark.parametrize("size", [K, K + 1, 50])
def test_all_categories_are_sigmoid_cross_entropy(frequencies, size):
    """Detectron2 fails here: torch.multinomial cannot draw more than there are."""
    logits, gt_classes = a_batch()
    loss = FederatedLoss(K, frequencies=frequencies, subset_size=size)
    torch.testing.assert_close(loss(logits, gt_classes), SigmoidCrossEntropy(K)(logits, gt_classes))


def test_a_batch_with_more_categories_than_the_subset_trains_them_all(frequencies):
    loss = FederatedLoss(K, frequencies=frequencies, subset_size=2)
    assert loss.draw_subset(torch.tensor([0, 1, 4, 6, K, 0])).tolist() == [True, True, False, False, True, False, True]


def test_categories_outside_are_left_alone(frequencies):
    logits, gt_classes = a_batch([0, 3, K])
    FederatedLoss(K, frequencies=frequencies, subset_size=1)(logits, gt_classes).backward()
    trained = (logits.grad != 0).all(0)
    assert trained.tolist() == [j in (0, 3) for j in range(K)]
    assert ((logits.grad != 0).any(0) == trained).all()


def test_background_takes_no_place(frequencies):
    assert FederatedLoss(K, frequencies=frequencies, subset_size=3).draw_subset(torch.tensor([K])).sum() == 3


def test_a_category_without_images_is_drawn_like_one_with_one():
    loss = FederatedLoss(2, frequencies=ClassFrequencies([0, 1], num_images=5), subset_size=1)
    drawn = torch.stack([loss.draw_subset(torch.tensor([2])) for _ in range(1000)])
    assert abs(drawn[:, 0].double().mean() - 0.5) < 4 * 0.5 / math.sqrt(1000)


def test_unknown_categories_take_no_part_though_drawn(frequencies):
    logits, gt_classes = a_batch()
    negatives = torch.ones(len(logits), K, dtype=torch.bool)
    negatives[2] = False
    FederatedLoss(K, frequencies=frequencies)(logits, gt_classes, negatives=negatives).backward()
    assert (logits.grad[2] == 0).all() and (logits.grad[[0, 1, 3, 4, 5]] != 0).all()


@pytest.mark.parametrize("gt_classes", [[0, 1], [0], [1]])
def test_one_category(gt_classes):
    loss = FederatedLoss(1, frequencies=ClassFrequencies([3], num_images=5))
    gt_classes = torch.tensor(gt_classes)
    logits = torch.randn(len(gt_classes), 1)
    assert torch.equal(loss(logits, gt_classes), SigmoidCrossEntropy(1)(logits, gt_classes))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"subset_size": 0}, "subset_size must be at least 1, got 0"),
        ({"power": -1.0}, r"power must be in \[0, inf\), got -1.0"),
        ({"power": float("nan")}, "power .*got nan"),
    ],
)
def test_wrong_arguments(frequencies, arguments, message):
    with pytest.raises(ValueError, match=message):
        FederatedLoss(K, frequencies=frequencies, **arguments)
