import io
import math

import pytest
import torch
from torch.nn import functional as F

from eql_d2 import ClassFrequencies
from eql_d2.losses import LDAMLoss, SoftmaxCrossEntropy

K = 7
COUNTS = [1, 20, 10, 30, 150, 202, 900]  # instances of the fixture


def weights(beta=0.9999):
    """Class-balanced weights of mean 1 over the objects, and 1 for background."""
    w = [(1 - beta) / (1 - beta**n) for n in COUNTS]
    mean = sum(n * x for n, x in zip(COUNTS, w)) / sum(COUNTS)
    return [x / mean for x in w] + [1.0]


def reference(logits, gt_classes, weight, max_margin=0.5, scale=30.0):
    margins = [max_margin * (min(COUNTS) / n) ** 0.25 for n in COUNTS] + [0.0]
    total = 0.0
    for z, y in zip(logits.tolist(), gt_classes.tolist()):
        z[y] -= margins[y]
        z = [scale * x for x in z]
        total += weight[y] * (math.log(sum(math.exp(x - max(z)) for x in z)) + max(z) - z[y])
    return total / len(gt_classes)


@pytest.fixture
def batch():
    """Cosines, and labels of all kinds."""
    logits = torch.rand(40, K + 1, dtype=torch.float64) * 2 - 1
    return logits.requires_grad_(), torch.arange(40) % (K + 1)


@pytest.mark.parametrize("arguments", [{}, {"max_margin": 0.2, "scale": 8.0}])
def test_equals_the_formula(frequencies, batch, arguments):
    loss = LDAMLoss(K, frequencies=frequencies, **arguments)
    expected = reference(*batch, [1.0] * (K + 1), **arguments)
    assert loss(*batch).item() == pytest.approx(expected, rel=1e-12)


def test_three_steps_with_weights_from_the_second(frequencies, batch):
    loss = LDAMLoss(K, frequencies=frequencies, reweight_iter=1)
    for n, weight in enumerate(([1.0] * (K + 1), weights(), weights())):
        assert loss.steps == n
        assert loss(*batch).item() == pytest.approx(reference(*batch, weight), rel=1e-10)


def test_gradient_is_the_closed_form(frequencies, batch):
    """dL/dz_ij = scale (softmax(scale (z_i - m e_y))_j - y_ij) / R."""
    logits, gt_classes = batch
    LDAMLoss(K, frequencies=frequencies)(logits, gt_classes).backward()
    margin = torch.tensor([0.5 * n**-0.25 for n in COUNTS] + [0], dtype=torch.float64)
    y = F.one_hot(gt_classes, K + 1)
    p = (30 * (logits.detach() - margin[gt_classes][:, None] * y)).softmax(1)
    torch.testing.assert_close(logits.grad, 30 * (p - y) / len(logits), rtol=1e-11, atol=1e-15)


def test_without_margin_it_is_cross_entropy_of_scaled_logits(frequencies, batch):
    loss = LDAMLoss(K, frequencies=frequencies, max_margin=0.0)
    torch.testing.assert_close(loss(*batch), F.cross_entropy(30 * batch[0], batch[1]))
    unscaled = LDAMLoss(K, frequencies=frequencies, max_margin=0.0, scale=1.0)
    torch.testing.assert_close(unscaled(*batch), SoftmaxCrossEntropy(K)(*batch))


def test_the_rarest_has_the_largest_margin_and_background_none(frequencies):
    margin = LDAMLoss(K, frequencies=frequencies).margin
    assert margin[0] == margin.max() == 0.5 and margin[K] == 0
    torch.testing.assert_close(margin[4], torch.tensor(0.5 * 150**-0.25, dtype=torch.float64))


def test_reweighting_leaves_foreground_its_share(frequencies):
    """The mean object weighs 1, like background."""
    loss = LDAMLoss(K, frequencies=frequencies, beta=0.99)
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    torch.testing.assert_close((counts * loss.class_weight[:K]).sum() / counts.sum(), counts.new_tensor(1))
    assert loss.class_weight[K] == 1 and loss.class_weight[0] > 10 * loss.class_weight[6]
    even = LDAMLoss(K, frequencies=frequencies, beta=0.0)
    torch.testing.assert_close(even.class_weight, torch.ones(K + 1, dtype=torch.float64))


def test_scores_are_softmax_of_scaled_logits(frequencies):
    """softmax(z) of cosines would be nearly uniform."""
    logits = torch.rand(5, K + 1) * 2 - 1
    loss = LDAMLoss(K, frequencies=frequencies)
    assert torch.equal(loss.probs(logits), (30 * logits).softmax(1))


def test_a_resumed_run_reweights_on_time(frequencies, batch, log_lines):
    def make():
        return LDAMLoss(K, frequencies=frequencies, reweight_iter=2)

    loss, resumed = make(), make()
    unweighted = loss(*batch)
    loss.eval()(*batch)  # counts no step
    checkpoint = io.BytesIO()
    torch.save(loss.state_dict(), checkpoint)
    checkpoint.seek(0)
    resumed.load_state_dict(torch.load(checkpoint))
    assert resumed(*batch) == unweighted and not log_lines
    assert resumed(*batch) != unweighted
    assert log_lines == ["LDAMLoss re-weights after 2 iterations"]


def test_a_category_without_a_sample_counts_as_one():
    none = LDAMLoss(3, frequencies=ClassFrequencies([0, 5, 9], [0, 5, 20]))
    one = LDAMLoss(3, frequencies=ClassFrequencies([1, 5, 9], [1, 5, 20]))
    assert torch.equal(none.margin, one.margin)
    assert none.class_weight.isfinite().all()


def test_wrong_arguments_are_refused(frequencies):
    for arguments, message in (
        ({"max_margin": -1.0}, r"max_margin must be in \[0, inf\), got -1"),
        ({"scale": 0.0}, r"scale must be in \(0, inf\), got 0"),
        ({"reweight_iter": -1}, "reweight_iter must be None or >= 0, got -1"),
        ({"beta": 1.0}, r"beta must be in \[0, 1\), got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            LDAMLoss(K, frequencies=frequencies, **arguments)
