import math

import pytest
import torch
from detectron2.modeling import ROI_HEADS_REGISTRY
from torch.nn import functional as F

from eql_d2 import TailRule
from eql_d2.losses import SoftmaxCrossEntropy, SoftmaxEqualizationLoss, functional

K = 7


@pytest.fixture
def batch():
    logits = torch.randn(40, K + 1, dtype=torch.float64) * 3
    return logits.requires_grad_(), torch.arange(40) % (K + 1)


def draw_by_loop(beta, gt_classes, tail, apply_on):
    """w of the paper is 0 where this is 1."""
    left_out = torch.zeros(len(gt_classes), K + 1)
    for i, c in enumerate(gt_classes.tolist()):
        E = 1 if (c < K or apply_on == "all") else 0
        for k in range(K):  # column K, background, has w = 1
            y = 1 if k == c else 0
            left_out[i, k] = int(beta[i, k]) * E * int(tail[k]) * (1 - y)
    return left_out.bool()


def reference(logits, gt_classes, left_out):
    """The paper's formula, term by term, with the given draw."""
    total = 0.0
    for z_i, c, out in zip(logits.tolist(), gt_classes.tolist(), left_out.tolist()):
        denominator = sum((1 - out[k]) * math.exp(z_i[k]) for k in range(K + 1))
        total += -math.log(math.exp(z_i[c]) / denominator)
    return total / len(gt_classes)


@pytest.mark.parametrize("apply_on", ["fg", "all"])
@pytest.mark.parametrize("rule", [TailRule(), TailRule(groups="r"), TailRule(lambda_=0.0105)])
def test_draw_and_value_equal_the_loop(frequencies, batch, rule, apply_on):
    loss = SoftmaxEqualizationLoss(K, frequencies=frequencies, tail=rule, gamma=0.6, apply_on=apply_on)
    logits, gt_classes = batch
    torch.manual_seed(3)
    beta = functional.bernoulli(torch.full((K + 1,), 0.6), len(gt_classes))
    expected = draw_by_loop(beta, gt_classes, rule.mask(frequencies), apply_on)
    torch.manual_seed(3)
    assert torch.equal(loss.draw_left_out(gt_classes), expected)
    torch.manual_seed(3)
    value = loss(logits, gt_classes).item()
    assert value == pytest.approx(reference(logits, gt_classes, expected), rel=1e-12)


def test_gradient_is_the_closed_form(frequencies, batch):
    """dL/dz_k = (w_k e^{z_k} / sum - y_k) / R."""
    logits, gt_classes = batch
    loss = SoftmaxEqualizationLoss(K, frequencies=frequencies)
    torch.manual_seed(1)
    w = (~loss.draw_left_out(gt_classes)).double()
    weighted = w * logits.detach().exp()
    y = F.one_hot(gt_classes, K + 1)
    expected = (weighted / weighted.sum(1, keepdim=True) - y) / len(gt_classes)

    def with_this_draw(z):
        torch.manual_seed(1)
        return loss(z, gt_classes)

    with_this_draw(logits).backward()
    torch.testing.assert_close(logits.grad, expected, rtol=1e-12, atol=1e-15)
    assert torch.autograd.gradcheck(with_this_draw, (logits,))


@pytest.mark.parametrize("arguments", [{"tail": TailRule(groups="")}, {"gamma": 0.0}])
def test_empty_tail_and_gamma_0_are_cross_entropy(frequencies, batch, arguments):
    loss = SoftmaxEqualizationLoss(K, frequencies=frequencies, **arguments)
    assert torch.equal(loss(*batch), SoftmaxCrossEntropy(K)(*batch))


def test_gamma_1_always_leaves_the_tail_out(frequencies):
    loss = SoftmaxEqualizationLoss(K, frequencies=frequencies, gamma=1.0)
    left_out = loss.draw_left_out(torch.full((50,), 6))
    assert left_out[:, loss.tail_mask.nonzero()[:, 0]].all()


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9])
def test_gamma_is_the_share_left_out(frequencies, gamma):
    """Over 5 tail categories x 4,000 RoIs the mean is within 4 standard deviations; each cell is drawn by itself."""
    loss = SoftmaxEqualizationLoss(K, frequencies=frequencies, gamma=gamma)
    left_out = loss.draw_left_out(torch.full((4000,), 6))
    drawn = left_out[:, :5].double()
    assert not left_out[:, 5:].any()
    sigma = math.sqrt(gamma * (1 - gamma) / drawn.numel())
    assert abs(drawn.mean().item() - gamma) < 4 * sigma
    correlation = torch.corrcoef(drawn.T) - torch.eye(5)
    assert correlation.abs().max() < 4 / math.sqrt(len(drawn))


def test_a_seed_fixes_the_draw_and_each_step_draws_anew(frequencies, batch):
    loss = SoftmaxEqualizationLoss(K, frequencies=frequencies, gamma=0.5)
    torch.manual_seed(7)
    first, second = loss(*batch), loss(*batch)
    torch.manual_seed(7)
    assert torch.equal(loss(*batch), first) and torch.equal(loss(*batch), second)
    assert not torch.equal(first, second)


def test_true_class_and_background_are_never_left_out(frequencies):
    loss = SoftmaxEqualizationLoss(K, frequencies=frequencies, gamma=1.0, apply_on="all")
    gt_classes = torch.arange(K + 1)
    left_out = loss.draw_left_out(gt_classes)
    assert not left_out[gt_classes, gt_classes].any() and not left_out[:, K].any()


def test_background_rois_push_the_tail_down_unless_applied_to_all(frequencies):
    for apply_on in ("fg", "all"):
        logits = torch.zeros(2, K + 1, requires_grad=True)
        loss = SoftmaxEqualizationLoss(K, frequencies=frequencies, gamma=1.0, apply_on=apply_on)
        loss(logits, torch.tensor([K, 6])).backward()
        background, foreground = logits.grad
        assert ((background[:5] > 0) == (apply_on == "fg")).all()
        assert (background[5:K] > 0).all() and background[K] < 0
        assert (foreground[:5] == 0).all() and foreground[5] > 0 and foreground[K] > 0


def test_extreme_logits_of_the_tail_are_left_out_exactly(frequencies):
    """The public ports overflow at +-100."""
    logits = torch.tensor([[1e4, -1e4, 1e4, -1e4, 1e4, 0, 0, -1e4]], requires_grad=True)
    loss = SoftmaxEqualizationLoss(K, frequencies=frequencies, gamma=1.0)
    value = loss(logits, torch.tensor([6]))
    value.backward()
    assert value.item() == pytest.approx(math.log(2))
    torch.testing.assert_close(logits.grad, torch.tensor([[0, 0, 0, 0, 0, 0.5, -0.5, 0]]))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"gamma": 1.5}, r"gamma is a probability in \[0, 1\], got 1.5"),
        ({"gamma": float("nan")}, "gamma .*got nan"),
        ({"apply_on": "bg"}, "apply_on must be 'fg' or 'all', got 'bg'"),
    ],
)
def test_wrong_arguments(frequencies, arguments, message):
    with pytest.raises(ValueError, match=message):
        SoftmaxEqualizationLoss(K, frequencies=frequencies, **arguments)


@pytest.mark.parametrize("prefix", ["", "Cascade", "Res5"])
def test_named_heads(prefix):
    head = ROI_HEADS_REGISTRY.get(f"{prefix}SoftmaxEQLROIHeads")
    assert head.loss_name == "SoftmaxEqualizationLoss"
    assert issubclass(head, ROI_HEADS_REGISTRY.get(f"LongTail{prefix}ROIHeads"))
