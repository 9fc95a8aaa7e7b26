"""Learned class weights: the gradient of a gradient by hand and by differences, and a run that goes on with them."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from eql_d2.losses import EqualizationLossV2, SigmoidCrossEntropy, SoftmaxCrossEntropy
from eql_d2.modeling.meta_reweighter import MetaReweighter, Samples, class_balanced_mean
from eql_d2.modeling.normed_linear import NormedLinear

KEY = "MODEL.ROI_BOX_HEAD.META_REWEIGHT"


def samples(R, D, K, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(R, D, generator=generator, dtype=dtype)
    return Samples(features, torch.randint(K + 1, (R,), generator=generator), None)


def test_a_case_of_two_classes_by_hand():
    """One category and background, a sigmoid loss, one feature: theta is a number u, without bias.

    first: x1 of the category (label 0) and x2 of background. l = softplus(-u x) or softplus(u x).
    u'(a) = u - eta / 2 (e^{a0} g1 + e^{a1} g2), with g1 = -x1 s(-u x1), g2 = x2 s(u x2).
    second: one RoI x3 of the category. F = softplus(-u' x3), dF/du' = -x3 s(-u' x3).
    dF/da0 = dF/du' * (-eta / 2 e^{a0} g1), dF/da1 = dF/du' * (-eta / 2 e^{a1} g2).
    """
    u, x1, x2, x3, eta, a0, a1 = 0.3, 1.5, -0.7, 2.0, 0.2, 0.4, -0.4

    def s(x):
        return 1 / (1 + math.exp(-x))

    g1, g2 = -x1 * s(-u * x1), x2 * s(u * x2)
    stepped = u - eta / 2 * (math.exp(a0) * g1 + math.exp(a1) * g2)
    slope = -x3 * s(-stepped * x3)
    expected = [slope * -eta / 2 * math.exp(a0) * g1, slope * -eta / 2 * math.exp(a1) * g2]

    classifier = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(classifier.weight, u)
    meta = MetaReweighter(SigmoidCrossEntropy(1), inner_lr=eta).double()
    meta.log_weight.copy_(torch.tensor([a0, a1], dtype=torch.float64))
    first = Samples(torch.tensor([[x1], [x2]], dtype=torch.float64), torch.tensor([0, 1]), None)
    second = Samples(torch.tensor([[x3]], dtype=torch.float64), torch.tensor([0]), None)
    found = meta.meta_gradient(classifier, first, second)
    assert found.tolist() == pytest.approx(expected, rel=1e-9)
    assert expected[0] < 0  # the category that the second half asks for gets more weight


@pytest.mark.parametrize("loss_class", [SoftmaxCrossEntropy, SigmoidCrossEntropy])
@pytest.mark.parametrize("layer", [lambda d, n: nn.Linear(d, n), lambda d, n: NormedLinear(d, n, 5.0)])
def test_against_finite_differences(loss_class, layer):
    """The step taken in earnest, by autograd on the layer itself."""
    K, D = 3, 4
    torch.manual_seed(0)
    loss = loss_class(K)
    meta = MetaReweighter(loss, inner_lr=0.5).double()
    meta.log_weight.normal_(0, 0.3)
    classifier = layer(D, loss.num_logits).double()
    first, second = samples(9, D, K, 1), samples(7, D, K, 2)

    def after_a_step(log_weight):
        stepped = layer(D, loss.num_logits).double()
        stepped.load_state_dict(classifier.state_dict())
        value = (loss(stepped(first.features), first.gt_classes, reduction="none")
                 * log_weight.exp()[first.gt_classes]).mean()  # fmt: skip
        value.backward()
        with torch.no_grad():
            for parameter in stepped.parameters():
                parameter -= 0.5 * parameter.grad
            losses = loss(stepped(second.features), second.gt_classes, reduction="none")
            means = [losses[second.gt_classes == c].mean() for c in second.gt_classes.unique()]
            return (sum(means) / len(means)).item()

    found = meta.meta_gradient(classifier, first, second)
    for c in range(K + 1):
        step = torch.zeros(K + 1).double()
        step[c] = 1e-5
        slope = (after_a_step(meta.log_weight + step) - after_a_step(meta.log_weight - step)) / 2e-5
        assert found[c].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)
    assert classifier.weight.grad is None


def test_every_class_counts_alike():
    losses, labels = torch.tensor([1.0, 3.0, 10.0, 5.0]), torch.tensor([0, 0, 2, 4])
    assert class_balanced_mean(losses, labels, 4) == (2 + 10 + 5) / 3


def test_weights_of_one_are_the_loss_and_scores_stay():
    loss = SoftmaxCrossEntropy(3)
    meta, logits, labels = MetaReweighter(loss), torch.randn(8, 4), torch.randint(4, (8,))
    assert torch.equal(meta(logits, labels), loss(logits, labels))
    meta.log_weight.copy_(torch.tensor([1.0, 0.0, -1.0, 0.0]))
    weight = meta.log_weight.exp()[labels]
    torch.testing.assert_close(meta(logits, labels), (loss(logits, labels, reduction="none") * weight).mean())
    assert torch.equal(meta.probs(logits), loss.probs(logits)) and meta.num_logits == 4


def test_adam_is_torchs_but_for_the_mean():
    meta = MetaReweighter(SoftmaxCrossEntropy(3), lr=0.05)
    theirs = torch.zeros(4, requires_grad=True)
    adam = torch.optim.Adam([theirs], lr=0.05)
    for seed in range(5):
        theirs.grad = torch.randn(4, generator=torch.Generator().manual_seed(seed))
        adam.step()
        meta._adam_step(theirs.grad)
        torch.testing.assert_close(meta.log_weight, (theirs - theirs.mean()).detach())


def step(model, batch):
    with EventStorage():
        return model(batch)["loss_cls"].item()


def test_it_learns_within_a_model_and_goes_on_where_it_stopped(tiny_cfg, batched_inputs):
    cfg = tiny_cfg(f"{KEY}.ENABLED", True, f"{KEY}.LR", 0.05)
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(build_model(cfg))
    whole, resumed = models
    for seed in range(4):
        torch.manual_seed(seed)
        whole_loss = step(whole, batched_inputs)
        if seed == 1:
            state = whole.state_dict()
            resumed.load_state_dict({k: v.clone() for k, v in state.items()})
        if seed > 1:
            torch.manual_seed(seed)
            assert step(resumed, batched_inputs) == whole_loss
    weights = whole.roi_heads.box_predictor.cls_loss.log_weight
    assert weights.abs().max() > 0.01 and abs(weights.mean()) < 1e-6
    assert torch.equal(weights, resumed.roi_heads.box_predictor.cls_loss.log_weight)


def test_what_cannot_be_is_refused(tiny_cfg, batched_inputs, frequencies):
    with pytest.raises(ValueError, match="loss without state, but EqualizationLossV2"):
        MetaReweighter(EqualizationLossV2(7))
    with pytest.raises(ValueError, match="must be above 0"):
        MetaReweighter(SoftmaxCrossEntropy(7), lr=0)
    with pytest.raises(ValueError, match="CLS_SCALE False"):
        build_model(tiny_cfg(f"{KEY}.ENABLED", True, "MODEL.ROI_BOX_HEAD.CLS_SCALE", True))
    with pytest.raises(ValueError, match="two images"):
        step(build_model(tiny_cfg(f"{KEY}.ENABLED", True)), batched_inputs[:1])
