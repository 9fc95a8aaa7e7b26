"""What losses accumulate: exact over long trainings, and fresh for another loss.

That several processes accumulate the same is in test_two_processes.py.
"""

import copy

import pytest
import torch

from eql_d2.engine import LongTailCheckpointer, Trainer
from eql_d2.losses import CLS_LOSS_REGISTRY
from eql_d2.losses.statistics import GradientSums

K = 7
STATEFUL = ["EqualizationLossV2", "EqualizedFocalLoss", "SeesawLoss", "LDAMLoss"]


def make(name, frequencies):
    arguments = {"frequencies": frequencies, "reweight_iter": 2} if name == "LDAMLoss" else {}
    return CLS_LOSS_REGISTRY.get(name)(num_classes=K, **arguments)


def a_step(loss, seed, R=24):
    """(value, gradient) of a training step, after which the state has grown."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(R, loss.num_logits, generator=generator, requires_grad=True)
    gt_classes = torch.randint(0, K + 1, (R,), generator=generator)
    value = loss(logits, gt_classes)
    value.backward()
    return value.detach(), logits.grad


# ---- sums ----


def test_the_ratio_is_initial_until_there_is_a_gradient():
    sums = GradientSums(3)
    assert sums.ratio(initial=100.0).tolist() == [100, 100, 100]
    sums.add(torch.tensor([2.0, 0.0, 0.0]), torch.tensor([4.0, 1.0, 0.0]))
    assert sums.ratio(initial=100.0).tolist() == pytest.approx([0.5, 0, 100], abs=1e-9)


def test_sums_go_on_growing_after_90000_steps():
    """A rare category adds 1e-4 a step to a negative sum that common ones have brought to 10^4; fp32 would stay."""
    per_step, steps, added = 0.2, 90_000, 1e-4
    sums = GradientSums(1)
    sums.negative += per_step * steps
    single = sums.negative.float()
    before = sums.negative.clone()
    for _ in range(100):
        sums.add(torch.zeros(1), torch.full((1,), added))
        single += added
    assert (sums.negative - before).item() == pytest.approx(100 * added, rel=1e-5)
    assert single == before.float()


def test_what_is_not_finite_is_not_added():
    sums = GradientSums(3)
    sums.add(torch.ones(3), torch.ones(3))
    sums.add(torch.tensor([float("nan"), 1, 1]), torch.tensor([1, float("inf"), 1]))
    assert sums.positive.tolist() == sums.negative.tolist() == [1, 1, 2]


@pytest.mark.parametrize("name", STATEFUL)
def test_state_is_exact_numbers_and_all_of_it_is_saved(name, frequencies):
    loss = make(name, frequencies)
    saved = loss.state_dict()
    assert saved and {value.dtype for value in saved.values()} <= {torch.int64, torch.float64}
    before = copy.deepcopy(saved)
    a_step(loss, seed=0)
    assert all((saved[key] != value).any() for key, value in before.items())
    assert not any(value.requires_grad for value in saved.values())


@pytest.mark.parametrize("name", STATEFUL)
def test_accumulated_gradients_are_steps_of_the_statistics(name, frequencies):
    """Two calls before one backward, as in gradient accumulation: the state is that of two steps."""
    one, other = make(name, frequencies), make(name, frequencies)
    logits = torch.randn(12, one.num_logits, requires_grad=True)
    gt_classes = torch.arange(12) % (K + 1)
    (one(logits, gt_classes) + one(logits, gt_classes)).backward()
    for _ in range(2):
        other(logits, gt_classes).backward()
    for key, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])


# ---- checkpoints ----


def cls_loss_of(model):
    return model.roi_heads.box_predictor.cls_loss


@pytest.mark.parametrize("name", STATEFUL)
def test_a_checkpoint_of_another_loss_leaves_the_initial_state(name, tiny_cfg, tmp_path):
    key = "MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME"
    other = Trainer.build_model(tiny_cfg(key, "SoftmaxCrossEntropy"))
    LongTailCheckpointer(other, str(tmp_path)).save("other")
    model = Trainer.build_model(tiny_cfg(key, name))
    weights = torch.load(tmp_path / "other.pth", weights_only=False)["model"]
    if name == "SeesawLoss":  # of K + 2 logits, which no other loss has
        weights = {key: value for key, value in weights.items() if "cls_score" not in key}
        torch.save({"model": weights}, tmp_path / "other.pth")
    LongTailCheckpointer(model).load(str(tmp_path / "other.pth"))
    for value in cls_loss_of(model).state_dict().values():
        assert (value == 0).all()


def test_losses_of_different_statistics_do_not_share_a_name(frequencies):
    """Resumed with the other loss, EQLv2 and EFL start fresh: their sums are of different gradients."""
    v2, focal = make("EqualizationLossV2", frequencies), make("EqualizedFocalLoss", frequencies)
    assert not v2.state_dict().keys() & focal.state_dict().keys()


@pytest.mark.parametrize("name", STATEFUL)
def test_each_stage_of_a_cascade_accumulates_on_its_own(name, frequencies):
    stages = [make(name, frequencies) for _ in range(3)]
    before = copy.deepcopy(stages[1].state_dict())
    a_step(stages[0], seed=0)
    assert all(torch.equal(before[key], value) for key, value in stages[1].state_dict().items())
