import math

import pytest
import torch

from eql_d2 import ClassFrequencies
from eql_d2.losses import BalancedSoftmaxLoss, LogitAdjustedLoss, SigmoidCrossEntropy

K = 7
IMAGES = [1, 9, 10, 11, 100, 101, 400]  # of the fixture, in 1,000 images


def a_batch(R=40):
    return (torch.randn(R, K, dtype=torch.float64) * 3).requires_grad_(), torch.arange(R) % (K + 1)


def reference(logits, gt_classes):
    """(value, gradient) of the formula, term by term."""
    R, total, gradient = len(gt_classes), 0.0, torch.zeros(len(gt_classes), K, dtype=torch.float64)
    for i, (z_i, c) in enumerate(zip(logits.tolist(), gt_classes.tolist())):
        for j in range(K):
            f = IMAGES[j] / 1000
            z = z_i[j] - (math.log((1 - f) / f) if c < K else 0)
            y, p = int(j == c), 1 / (1 + math.exp(-z))
            total -= y * math.log(p) + (1 - y) * math.log(1 - p)
            gradient[i, j] = (p - y) / R
    return total / R, gradient


def test_three_steps_equal_the_loop(frequencies):
    loss = BalancedSoftmaxLoss(K, frequencies=frequencies)
    for _ in range(3):
        logits, gt_classes = a_batch()
        value, gradient = reference(logits, gt_classes)
        result = loss(logits, gt_classes)
        result.backward()
        assert result.item() == pytest.approx(value, rel=1e-12)
        torch.testing.assert_close(logits.grad, gradient, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("images, shift", [(500, 0.0), (250, math.log(1 / 3))])
def test_equal_frequencies_are_a_constant_shift_of_foreground_rois(images, shift):
    loss = BalancedSoftmaxLoss(K, frequencies=ClassFrequencies([images] * K, num_images=1000))
    logits, gt_classes = a_batch()
    shifted = logits + shift * (gt_classes < K).double()[:, None]
    expected = SigmoidCrossEntropy(K)(shifted, gt_classes)
    torch.testing.assert_close(loss(logits, gt_classes), expected, rtol=1e-12, atol=0)


def test_background_is_sigmoid_cross_entropys(frequencies):
    logits, _ = a_batch()
    gt_classes = torch.full((40,), K)
    expected = SigmoidCrossEntropy(K)(logits, gt_classes)
    assert torch.equal(BalancedSoftmaxLoss(K, frequencies=frequencies)(logits, gt_classes), expected)


def test_rare_objects_pull_more_and_are_pushed_less(frequencies):
    logits = torch.zeros(2, K, requires_grad=True)
    BalancedSoftmaxLoss(K, frequencies=frequencies)(logits, torch.tensor([0, 6])).backward()
    rare, frequent = logits.grad
    assert rare[0] < frequent[6] < 0 and frequent[0] < rare[6]


def test_the_softmax_form_is_logit_adjustment(frequencies):
    """CE(z + log n), as the docstring says; over K classes, since the paper has no background."""
    logits, labels = torch.randn(30, K, dtype=torch.float64), torch.arange(30) % K
    total = 0.0
    for z, y in zip(logits.tolist(), labels.tolist()):
        e = [n * math.exp(x) for n, x in zip(frequencies.instance_count.tolist(), z)]
        total -= math.log(e[y] / sum(e))
    value = LogitAdjustedLoss(K, frequencies=frequencies, tau=1.0)(logits, labels)
    assert value.item() == pytest.approx(total / 30, rel=1e-12)


@pytest.mark.parametrize("images", [1, 5])
def test_categories_of_no_image_and_of_all_images_have_finite_priors(images):
    loss = BalancedSoftmaxLoss(3, frequencies=ClassFrequencies([0, 1, images], num_images=images))
    assert loss.adjustment.isfinite().all()
    assert loss.adjustment[0] == loss.adjustment[1] <= loss.adjustment[2]
    assert loss(torch.randn(4, 3), torch.arange(4)).isfinite()


@pytest.mark.parametrize("gt_classes", [[0, 1], [0], [1]])
def test_one_category(gt_classes):
    loss = BalancedSoftmaxLoss(1, frequencies=ClassFrequencies([1], num_images=4))
    logits = torch.zeros(len(gt_classes), 1, requires_grad=True)
    loss(logits, torch.tensor(gt_classes)).backward()
    expected = [[-0.75] if c == 0 else [0.5] for c in gt_classes]  # of an object sigmoid(log(1 / 3)) - 1
    torch.testing.assert_close(len(gt_classes) * logits.grad, torch.tensor(expected))


def test_without_the_number_of_images_it_says_so_when_it_is_made():
    with pytest.raises(ValueError, match="not the number of annotated images"):
        BalancedSoftmaxLoss(2, frequencies=ClassFrequencies([1, 4]))
