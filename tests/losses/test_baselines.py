import pytest
import torch
from torch.nn import functional as F

from eql_d2.losses import SigmoidCrossEntropy, SoftmaxCrossEntropy

K = 5


def test_sigmoid_equals_torch():
    logits, gt_classes = torch.randn(30, K, dtype=torch.float64), torch.randint(0, K + 1, (30,))
    target = F.one_hot(gt_classes, K + 1)[:, :K].double()
    expected = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(1).mean()
    torch.testing.assert_close(SigmoidCrossEntropy(K)(logits, gt_classes), expected, rtol=1e-12, atol=0)


def test_softmax_equals_torch():
    logits, gt_classes = torch.randn(30, K + 1), torch.randint(0, K + 1, (30,))
    actual, expected = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value = SoftmaxCrossEntropy(K)(actual, gt_classes)
    value.backward()
    expected_value = F.cross_entropy(expected, gt_classes)
    expected_value.backward()
    torch.testing.assert_close(value, expected_value, rtol=1e-6, atol=0)  # summed in another order
    assert torch.equal(actual.grad, expected.grad)


def test_a_background_row_is_all_negative():
    logits = torch.zeros(1, K, requires_grad=True)
    SigmoidCrossEntropy(K)(logits, torch.tensor([K])).backward()
    torch.testing.assert_close(logits.grad, torch.full((1, K), 0.5))


def test_sigmoid_predicts_background_where_no_score_exceeds_a_half():
    loss = SigmoidCrossEntropy(2)
    probs = loss.probs(torch.tensor([[-1.0, -2.0], [1.0, 0.5]]))
    assert loss.predicted_classes(probs).tolist() == [2, 0]


def test_prior_gives_the_initial_score():
    with pytest.raises(ValueError, match="prior_prob"):
        SigmoidCrossEntropy(K, prior_prob=0.0)
    assert SigmoidCrossEntropy(K).prior_prob == 0.001
