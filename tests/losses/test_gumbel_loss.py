"""The Gumbel activation, against its formula, and autograd through torch's BCE."""

import math

import pytest
import torch
from torch.nn import functional as F

from eql_d2.losses import GumbelLoss

K = 5
LABELS = torch.tensor([0, 3, K, K, 4])


def logits():
    return (torch.rand(len(LABELS), K, dtype=torch.float64) * 7 - 3).requires_grad_()  # where neither is clamped


def test_equals_torchs_bce_of_the_activation():
    z = logits()
    target = F.one_hot(LABELS, K + 1)[:, :K].double()
    expected = F.binary_cross_entropy(torch.exp(-torch.exp(-z)), target, reduction="sum") / len(LABELS)
    value = GumbelLoss(K)(z, LABELS)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(x, z)[0] for x in (value, expected)))


def test_scores_are_the_activation_with_background_zero():
    z = logits()
    scores = GumbelLoss(K).probs(z)
    assert scores[0, :K].tolist() == pytest.approx([math.exp(-math.exp(-x)) for x in z[0].tolist()])
    assert not scores[:, K].any() and GumbelLoss(K).probs(z.half()).dtype == torch.float32


def test_it_starts_at_the_authors_bias():
    p = GumbelLoss(K).prior_prob
    assert -math.log((1 - p) / p) == pytest.approx(-2)
    with pytest.raises(ValueError, match=r"\[-4, 10\]"):
        GumbelLoss(K, initial_bias=-5.0)


def test_known_categories_only():
    z = logits()
    own = F.one_hot(LABELS, K + 1)[:, :K].bool()
    gradient = torch.autograd.grad(GumbelLoss(K)(z, LABELS, negatives=own), z)[0]
    assert gradient[own].all() and not gradient[~own].any()


@pytest.mark.parametrize("value", [-1e4, -4.0, 10.0, 1e4])
def test_far_logits_are_finite(value):
    z = torch.full((len(LABELS), K), value, requires_grad=True)
    loss = GumbelLoss(K)(z, LABELS)
    loss.backward()
    assert loss.isfinite() and z.grad.isfinite().all() and GumbelLoss(K).probs(z).isfinite().all()
