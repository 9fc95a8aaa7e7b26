import math

import pytest
import torch
from torch.nn import functional as F

from eql_d2 import ClassFrequencies
from eql_d2.losses import WeightedCrossEntropy

K = 7
COUNTS = [1, 20, 10, 30, 150, 202, 900]  # instances of the fixture


def reference_weight(power, background_weight, counts=COUNTS):
    """n^-power, divided by its mean over the categories that occur, then that of background."""
    raw = [max(n, 1) ** -power for n in counts]
    seen = [w for w, n in zip(raw, counts) if n > 0]
    return [w / (sum(seen) / len(seen)) for w in raw] + [background_weight]


def reference(logits, gt_classes, weight, normalize_by):
    total, normalizer = 0.0, 0.0
    for z, c in zip(logits.tolist(), gt_classes.tolist()):
        total += weight[c] * (math.log(sum(map(math.exp, z))) - z[c])
        normalizer += weight[c] if normalize_by == "weights" else 1
    return total / normalizer


@pytest.fixture
def batch():
    logits = torch.randn(40, K + 1, dtype=torch.float64) * 3
    return logits.requires_grad_(), torch.arange(40) % (K + 1)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("background_weight", [1.0, 0.3])
@pytest.mark.parametrize("normalize_by", ["rois", "weights"])
def test_equals_the_formula(frequencies, batch, power, background_weight, normalize_by):
    loss = WeightedCrossEntropy(
        K,
        frequencies=frequencies,
        power=power,
        background_weight=background_weight,
        normalize_by=normalize_by,
    )
    expected = reference(*batch, reference_weight(power, background_weight), normalize_by)
    assert loss(*batch).item() == pytest.approx(expected, rel=1e-12)
    assert loss.class_weight[:K].mean().item() == pytest.approx(1, rel=1e-12)


def test_normalized_by_weights_it_is_torchs(frequencies, batch):
    loss = WeightedCrossEntropy(K, frequencies=frequencies, normalize_by="weights")
    expected = F.cross_entropy(*batch, loss.class_weight)
    torch.testing.assert_close(loss(*batch), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("normalize_by", ["rois", "weights"])
def test_gradient_is_the_closed_form(frequencies, batch, normalize_by):
    """dL/dz_i = w_{y_i} (p_i - y_i) / N."""
    logits, gt_classes = batch
    loss = WeightedCrossEntropy(K, frequencies=frequencies, normalize_by=normalize_by)
    loss(logits, gt_classes).backward()
    weight = torch.tensor(reference_weight(1, 1), dtype=torch.float64)[gt_classes]
    normalizer = weight.sum() if normalize_by == "weights" else len(logits)
    error = logits.detach().softmax(1) - F.one_hot(gt_classes, K + 1)
    expected = weight[:, None] * error / normalizer
    torch.testing.assert_close(logits.grad, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("normalize_by", ["rois", "weights"])
def test_power_zero_is_cross_entropy(frequencies, batch, normalize_by):
    loss = WeightedCrossEntropy(K, frequencies=frequencies, power=0.0, normalize_by=normalize_by)
    torch.testing.assert_close(loss(*batch), F.cross_entropy(*batch), rtol=1e-12, atol=0)


def test_uniform_counts_are_cross_entropy(batch):
    uniform = ClassFrequencies([7] * K, [13] * K, num_images=100)
    loss = WeightedCrossEntropy(K, frequencies=uniform)
    torch.testing.assert_close(loss(*batch), F.cross_entropy(*batch), rtol=1e-12, atol=0)


def test_background_has_the_weight_of_the_argument(frequencies):
    gradients = []
    for background_weight in (1.0, 0.25, 0.0):
        logits = torch.zeros(1, K + 1, requires_grad=True)
        loss = WeightedCrossEntropy(K, frequencies=frequencies, background_weight=background_weight)
        loss(logits, torch.tensor([K])).backward()
        gradients.append(logits.grad)
    assert gradients[0][0, K] == 1 / (K + 1) - 1  # as in cross-entropy
    torch.testing.assert_close(gradients[1], gradients[0] * 0.25)
    assert (gradients[2] == 0).all()


def test_background_that_weighs_nothing_alone_in_a_batch(frequencies):
    logits = torch.randn(3, K + 1, requires_grad=True)
    loss = WeightedCrossEntropy(K, frequencies=frequencies, background_weight=0.0, normalize_by="weights")
    value = loss(logits, torch.full((3,), K))
    value.backward()
    assert value == 0 and (logits.grad == 0).all()


def test_a_category_without_a_sample_has_no_part_in_the_mean():
    counts = [0, 5, 0, 20]
    loss = WeightedCrossEntropy(4, frequencies=ClassFrequencies([0, 5, 0, 9], counts))
    expected = torch.tensor(reference_weight(1, 1, counts), dtype=torch.float64)
    torch.testing.assert_close(loss.class_weight, expected, rtol=1e-12, atol=0)
    assert loss.class_weight[[1, 3]].mean() == 1
    with pytest.raises(ValueError, match="all 2 categories have a count of 0"):
        WeightedCrossEntropy(2, frequencies=ClassFrequencies([0, 0], [0, 0]))


def test_extreme_logits_are_finite(frequencies):
    logits = (torch.randn(16, K + 1).sign() * 1e4).requires_grad_()
    value = WeightedCrossEntropy(K, frequencies=frequencies)(logits, torch.arange(16) % (K + 1))
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()


def test_wrong_arguments_are_refused(frequencies):
    for arguments, message in [
        ({"power": -1.0}, r"power must be in \[0, inf\), got -1.0"),
        ({"background_weight": -0.5}, r"background_weight must be in \[0, inf\), got -0.5"),
        ({"normalize_by": "batch"}, "'rois' or 'weights', got 'batch'"),
    ]:
        with pytest.raises(ValueError, match=message):
            WeightedCrossEntropy(K, frequencies=frequencies, **arguments)
    with pytest.raises(ValueError, match="has no instance counts.*COUNTS_FILE"):
        WeightedCrossEntropy(2, frequencies=ClassFrequencies([1, 2])).require_frequencies()
