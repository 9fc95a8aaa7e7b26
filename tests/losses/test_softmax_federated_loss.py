"""A softmax over a subset, against the formula with the same draws."""

import math

import pytest
import torch

from eql_d2 import ClassFrequencies
from eql_d2.losses import SoftmaxCrossEntropy, SoftmaxFederatedLoss

K = 7
COUNTS = ClassFrequencies([1, 9, 10, 11, 100, 101, 400], [1, 20, 10, 30, 150, 202, 900], num_images=1000)
LABELS = torch.tensor([0, 3, K, K, 5, 3])


def make(**arguments):
    return SoftmaxFederatedLoss(K, frequencies=COUNTS, **arguments)


def logits():
    return (torch.randn(len(LABELS), K + 1, dtype=torch.float64) * 3).requires_grad_()


@pytest.mark.parametrize("with_labels", [False, True])
def test_by_a_loop(with_labels):
    loss, z = make(subset_size=5), logits()
    torch.manual_seed(3)
    subset = loss.draw_subset(LABELS).tolist()
    known = torch.rand(len(LABELS), K) < 0.6 if with_labels else None
    if with_labels:
        known[torch.arange(len(LABELS)), LABELS.clamp(max=K - 1)] = True  # as the box predictor makes it
    torch.manual_seed(3)
    value = loss(z, LABELS, negatives=known)
    total = 0.0
    for i, (row, y) in enumerate(zip(z.tolist(), LABELS.tolist(), strict=True)):
        competing = [j for j in range(K) if j == y or (subset[j] and (known is None or known[i, j]))] + [K]
        total -= math.log(math.exp(row[y]) / sum(math.exp(row[j]) for j in competing))
    assert value.item() == pytest.approx(total / len(LABELS))
    gradient = torch.autograd.grad(value, z)[0]
    left_out = [j for j in range(K) if not subset[j]]
    assert len(left_out) == 2 and not gradient[:, left_out].any()
    torch.testing.assert_close(gradient.sum(dim=1), torch.zeros(len(LABELS), dtype=torch.float64), atol=1e-12, rtol=0)


def test_with_all_categories_it_is_cross_entropy():
    z = logits()
    assert torch.equal(make(subset_size=K)(z, LABELS), SoftmaxCrossEntropy(K)(z, LABELS))


def test_without_counts_it_scores_and_does_not_train(tiny_cfg):
    from eql_d2.losses import build_cls_loss

    node = "MODEL.ROI_BOX_HEAD.CLS_LOSS"
    loss = build_cls_loss(
        tiny_cfg(f"{node}.NAME", "SoftmaxFederatedLoss", f"{node}.COUNTS_FILE", "", "DATASETS.TRAIN", ("nowhere",))
    )
    with pytest.raises(ValueError, match="needs class frequencies to train"):
        loss(torch.zeros(1, 8), torch.zeros(1, dtype=torch.int64))
    assert loss.probs(torch.zeros(2, 8)).shape == (2, 8)
