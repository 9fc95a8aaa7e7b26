"""The mixin for set criteria against a criterion that is written here, as DETR's."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eql_d2.errors import InputError
from eql_d2.losses import (
    EqualizationLossV2,
    SigmoidCrossEntropy,
    SigmoidFocalLoss,
    SoftmaxCrossEntropy,
    normalised_loss,
)
from eql_d2.modeling import LongTailCriterionMixin, class_embed

N, Q, K = 2, 5, 4
TARGETS = [{"labels": torch.tensor([3, 0])}, {"labels": torch.tensor([2])}]
INDICES = [(torch.tensor([1, 4]), torch.tensor([1, 0])), (torch.tensor([2]), torch.tensor([0]))]
# Query 1 of image 0 is matched with its object 1, of category 0, and so on.
LABELS = torch.tensor([[K, 0, K, K, 3], [K, K, 2, K, K]])


class SetCriterion(nn.Module):
    """With the interface of DETR's."""

    def loss_labels(self, outputs, targets, indices, num_boxes, log=True):
        raise AssertionError("the stock loss is not to be called")

    def forward(self, outputs, targets, indices, num_boxes):
        return self.loss_labels(outputs, targets, indices, num_boxes, log=False)


class Criterion(LongTailCriterionMixin, SetCriterion):
    pass


def logits_of(C):
    return torch.randn(N, Q, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)


def criterion_with(loss):
    criterion = Criterion()
    criterion.cls_loss = loss
    return criterion


def test_sigmoid_losses_are_deformable_detrs():
    """By its own formula: a one-hot target for each matched query, the sum over all, divided by num_boxes."""
    logits = logits_of(K)
    one_hot = F.one_hot(LABELS, K + 1)[..., :-1].double()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
    p = logits.sigmoid()
    p_t = p * one_hot + (1 - p) * (1 - one_hot)
    alpha_t = 0.25 * one_hot + 0.75 * (1 - one_hot)
    for loss, expected in (
        (SigmoidCrossEntropy(K), cross_entropy),
        (SigmoidFocalLoss(K), alpha_t * (1 - p_t) ** 2 * cross_entropy),
    ):
        ours = criterion_with(loss)({"pred_logits": logits}, TARGETS, INDICES, 3)
        expected = expected.sum() / 3
        assert ours.keys() == {"loss_ce"}
        torch.testing.assert_close(ours["loss_ce"], expected)
        gradients = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (ours["loss_ce"], expected)]
        torch.testing.assert_close(*gradients)


def test_a_softmax_has_its_no_object_last():
    logits = logits_of(K + 1)
    ours = criterion_with(SoftmaxCrossEntropy(K))({"pred_logits": logits}, TARGETS, INDICES, torch.tensor(3.0))
    expected = F.cross_entropy(logits.flatten(0, 1), LABELS.flatten(), reduction="sum") / 3
    torch.testing.assert_close(ours["loss_ce"], expected)


def test_names_of_transformers_and_detrex():
    logits = logits_of(K)
    targets = [{"class_labels": target["labels"]} for target in TARGETS]
    criterion = criterion_with(SigmoidCrossEntropy(K))
    criterion.label_loss_name = "loss_class"
    ours = criterion({"logits": logits}, targets, INDICES, 3.0)["loss_class"]
    assert torch.equal(ours, normalised_loss(criterion.cls_loss, logits, LABELS, 3.0))


def test_a_batch_without_objects_has_a_gradient():
    logits = logits_of(K)
    nothing = [{"labels": torch.zeros(0, dtype=torch.int64)}] * N
    none = [(torch.zeros(0, dtype=torch.int64),) * 2] * N
    criterion_with(SigmoidCrossEntropy(K))({"pred_logits": logits}, nothing, none, 1.0)["loss_ce"].backward()
    assert (logits.grad > 0).all()


def test_ignored_queries_and_no_rows():
    loss, logits = SigmoidFocalLoss(K), logits_of(K)
    labels = LABELS.clone()
    labels[0, :3] = -1
    kept = labels >= 0
    torch.testing.assert_close(
        normalised_loss(loss, logits, labels, 2.5), loss(logits[kept], labels[kept], reduction="sum") / 2.5
    )
    nothing = normalised_loss(loss, logits, torch.full_like(labels, -1), 1.0)
    assert float(nothing) == 0 and nothing.requires_grad


def test_mistakes():
    with pytest.raises(InputError, match="Criterion has no loss: set its cls_loss"):
        Criterion()({"pred_logits": logits_of(K)}, TARGETS, INDICES, 3)
    with pytest.raises(InputError, match=r"logits are \(2, 5, 4\), gt_classes \(2, 4\)"):
        normalised_loss(SigmoidFocalLoss(K), logits_of(K), LABELS[:, 1:], 1.0)
    with pytest.raises(InputError, match="normalizer must be above 0, got 0"):
        normalised_loss(SigmoidFocalLoss(K), logits_of(K), LABELS, 0)


def test_the_classifier_is_as_wide_as_the_loss_and_starts_from_its_prior():
    layer = class_embed(8, SigmoidFocalLoss(K))
    assert layer.out_features == K
    torch.testing.assert_close(layer.bias.sigmoid(), torch.full((K,), 0.01))
    layer = class_embed(8, EqualizationLossV2(K))
    torch.testing.assert_close(layer.bias.sigmoid(), torch.tensor([0.001] * K + [0.999]))
    assert (class_embed(8, SoftmaxCrossEntropy(K)).bias == 0).all()
