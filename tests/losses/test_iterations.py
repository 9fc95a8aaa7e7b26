"""The start of a loss after some steps, for every loss of the registry."""

import copy
import inspect
import io

import pytest
import torch
from torch.nn import functional as F

from eql_d2 import CLS_LOSS_REGISTRY, build_cls_loss
from eql_d2.errors import InputError
from eql_d2.losses import (
    BalancedGroupSoftmaxLoss,
    EqualizationLoss,
    EqualizationLossV2,
    InfluenceBalancedLoss,
    LateStart,
    LDAMLoss,
    SeesawLoss,
    SigmoidCrossEntropy,
    SigmoidLoss,
    SoftmaxCrossEntropy,
    SoftmaxFocalLoss,
    fused,
)

K, D, R = 7, 16, 24


LOSSES = sorted(name for name, _ in CLS_LOSS_REGISTRY)
NEVER_PLAIN = {"BalancedGroupSoftmaxLoss", "SeesawLoss"}


def start_at(loss, start_iter):
    return LateStart(loss.plain(), loss, start_iter=start_iter)


def make(name, frequencies):
    loss_class = CLS_LOSS_REGISTRY.get(name)
    takes_counts = "frequencies" in inspect.signature(loss_class.__init__).parameters
    return loss_class(K, **({"frequencies": frequencies} if takes_counts else {}))


def a_batch(width):
    logits = torch.randn(R, width, dtype=torch.float64)
    return logits, torch.arange(R) % (K + 1), torch.rand(R, D, dtype=torch.float64)


def cross_entropy(loss, logits, gt_classes):
    """Softmax or sigmoid cross-entropy, of as many logits as the loss has; of scaled ones where its scores are."""
    if not isinstance(loss, SigmoidLoss) and logits.shape[1] == K + 1:
        return F.cross_entropy(getattr(loss, "scale", 1) * logits, gt_classes)
    target = F.one_hot(gt_classes, K + 1)[:, : logits.shape[1]].to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / len(logits)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in NEVER_PLAIN])
def test_plain_cross_entropy_first_and_then_the_loss(name, frequencies):
    loss, at_once = start_at(make(name, frequencies), 2), make(name, frequencies)
    batch = a_batch(loss.num_logits)
    for _ in range(2):
        torch.testing.assert_close(loss(*batch), cross_entropy(at_once, *batch[:2]), rtol=1e-12, atol=0)
    for _ in range(2):
        values = []
        for one in (loss, at_once):
            torch.manual_seed(1)  # some losses draw
            values.append(one(*batch))
        assert torch.equal(*values)
    assert loss.steps == 4 and loss.steps.dtype == torch.int64
    assert torch.equal(loss.probs(batch[0]), at_once.probs(batch[0]))
    assert loss.prior_prob == at_once.prior_prob and loss.num_logits == at_once.num_logits


def test_losses_of_logits_that_plain_cross_entropy_cannot_train(frequencies):
    for loss, width in ((SeesawLoss(K), 9), (BalancedGroupSoftmaxLoss(K, frequencies=frequencies), 13)):
        with pytest.raises(InputError, match=f"cannot start later: its {width} logits for 7 classes .*START_ITER 0"):
            loss.plain()
    with pytest.raises(InputError, match="SigmoidCrossEntropy has 7 for 7 classes, SoftmaxCrossEntropy 8 for 7"):
        LateStart(SigmoidCrossEntropy(K), SoftmaxCrossEntropy(K), start_iter=1)


def test_its_errors_name_the_loss_that_was_chosen():
    late = LateStart(SigmoidCrossEntropy(K), EqualizationLoss(K, frequencies=[1] * K), start_iter=1)
    for logits, label in ((torch.zeros(1, K + 3), 0), (torch.zeros(1, K), -1), (torch.zeros(1, K), 0.5)):
        with pytest.raises(ValueError, match="^EqualizationLoss "):
            late(logits, torch.tensor([label]))


@pytest.mark.parametrize("transformed", [False, True])
def test_what_a_late_loss_accumulates_begins_when_it_starts(transformed, monkeypatch):
    """Also where both losses are computed, as in a compiled step."""
    monkeypatch.setattr(fused, "is_transformed", lambda: transformed)
    monkeypatch.setattr("eql_d2.losses.iterations.is_transformed", lambda: transformed)
    loss, at_once = start_at(EqualizationLossV2(K), 2), EqualizationLossV2(K)
    batch = a_batch(loss.num_logits)
    for step in range(4):
        value = loss(*batch)
        expected = at_once(*batch) if step >= 2 else EqualizationLossV2(K).eval()(*batch)
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(loss.then.gradients.negative, at_once.gradients.negative)
    assert at_once.gradients.negative.sum() > 0


@pytest.mark.parametrize("of", ["LDAMLoss", "InfluenceBalancedLoss", "LateStart"])
@pytest.mark.parametrize("to", ["LDAMLoss", "InfluenceBalancedLoss", "LateStart"])
def test_no_loss_goes_on_from_the_count_of_another(of, to, frequencies):
    def make(name):
        if name == "LateStart":
            return start_at(SoftmaxFocalLoss(K), 3)
        arguments = {"reweight_iter": 3} if name == "LDAMLoss" else {"start_iter": 3}
        return CLS_LOSS_REGISTRY.get(name)(K, frequencies=frequencies, **arguments)

    one, other = make(of), make(to)
    one(*a_batch(K + 1))
    if of == to:
        other.load_state_dict(one.state_dict())
        assert other.steps == 1 == other.steps_done
        return
    with pytest.raises(RuntimeError, match="steps_of_"):
        other.load_state_dict(one.state_dict())
    other.load_state_dict(one.state_dict(), strict=False)
    assert other.steps == 0 == other.steps_done


def test_a_late_loss_that_counts_itself_counts_from_the_beginning(frequencies):
    loss = start_at(LDAMLoss(K, frequencies=frequencies, reweight_iter=3), 2)
    weighted, plain = LDAMLoss(K, frequencies=frequencies, reweight_iter=0), LDAMLoss(K, frequencies=frequencies)
    batch = a_batch(K + 1)
    values = [loss(*batch) for _ in range(4)]
    cross_entropy = F.cross_entropy(30 * batch[0], batch[1])
    torch.testing.assert_close(values, [cross_entropy, cross_entropy, plain(*batch), weighted(*batch)])


@pytest.fixture
def focal():
    """A function that makes a loss that differs from cross-entropy."""
    return lambda start_iter: start_at(SoftmaxFocalLoss(K), start_iter)


@pytest.fixture
def batch():
    return a_batch(K + 1)


def test_evaluation_does_not_count(focal, batch):
    loss = focal(1).eval()
    for _ in range(3):
        assert torch.equal(loss(*batch), F.cross_entropy(*batch[:2]))
    assert loss.steps == 0 == loss.steps_done
    loss.train()(*batch)
    assert loss.steps == 1 and loss.eval()(*batch) != F.cross_entropy(*batch[:2])


def test_parts_of_an_iteration_are_no_iterations(focal, batch):
    loss = focal(2)
    loss.calls_per_iteration = 3  # as TrainStep sets it where it accumulates
    for _ in range(6):
        assert torch.equal(loss(*batch), F.cross_entropy(*batch[:2]))
    assert loss(*batch) != F.cross_entropy(*batch[:2])


def test_a_process_without_rois_counts_with_the_others(focal, batch):
    """Or they would change their loss in different steps."""
    loss = focal(1)
    assert loss(*(x[:0] for x in batch)) == 0
    assert loss.steps == 1 and loss(*batch) != F.cross_entropy(*batch[:2])


def test_a_resumed_run_goes_on_counting(focal, batch):
    loss, resumed = focal(3), focal(3)
    for _ in range(2):
        loss(*batch)
    checkpoint = io.BytesIO()
    torch.save(torch.nn.ModuleDict({"cls_loss": loss}).state_dict(), checkpoint)
    checkpoint.seek(0)
    torch.nn.ModuleDict({"cls_loss": resumed}).load_state_dict(torch.load(checkpoint))
    for other in (resumed, copy.deepcopy(loss)):
        assert torch.equal(other(*batch), F.cross_entropy(*batch[:2]))  # the third step
        assert other(*batch) != F.cross_entropy(*batch[:2])  # the fourth
        assert other.steps == 4


def test_weights_without_the_count_can_be_loaded(focal):
    """Those of a model that was trained with another loss."""
    loss = focal(3)
    assert loss.load_state_dict({}, strict=False).missing_keys == ["steps_of_SoftmaxFocalLoss"]
    assert loss.steps == 0


def test_a_loss_that_starts_at_once_keeps_no_count(batch):
    loss = SoftmaxFocalLoss(K)
    loss(*batch)
    assert loss.state_dict() == {}


def test_the_switch_is_logged_once(focal, batch, log_lines):
    stages = [focal(4) for _ in range(3)]
    counts = []
    for _ in range(8):
        for loss in stages:
            loss(*batch)
            loss.eval()(*batch)
            loss.train()
        counts.append(sum("SoftmaxFocalLoss takes over" in line and "after 4 iterations" in line for line in log_lines))
    assert counts == [0] * 4 + [1] * 4


def test_the_key_is_for_any_loss(tiny_cfg):
    loss = build_cls_loss(
        tiny_cfg(
            "MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME",
            "InfluenceBalancedLoss",
            "MODEL.ROI_BOX_HEAD.CLS_LOSS.START_ITER",
            3,
        )
    )
    assert isinstance(loss, InfluenceBalancedLoss) and loss.start_iter == 3
    with pytest.raises(ValueError, match="START_ITER must be >= 0, got -1"):
        build_cls_loss(tiny_cfg("MODEL.ROI_BOX_HEAD.CLS_LOSS.START_ITER", -1))
    own_key = ["MODEL.ROI_BOX_HEAD.CLS_LOSS.InfluenceBalancedLoss.START_ITER", 4]
    name = ["MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", "InfluenceBalancedLoss"]
    assert build_cls_loss(tiny_cfg(*name, *own_key)).start_iter == 4
    with pytest.raises(ValueError, match="START_ITER is 3 but InfluenceBalancedLoss starts at 4"):
        build_cls_loss(tiny_cfg(*name, *own_key, "MODEL.ROI_BOX_HEAD.CLS_LOSS.START_ITER", 3))
