"""Every loss with torch as it is: its function transforms, checkpointing, meta device, averages, wrong labels.

What torch.compile makes of them takes minutes, and is in tests/slow. ``table_of_battery.py`` tabulates both.
"""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from eql_d2.data.frequencies import ClassFrequencies
from eql_d2.errors import InputError
from eql_d2.losses import CLS_LOSS_REGISTRY, fused

K, D, R = 7, 16, 24
RANDOM = {
    "AdaptiveClassSuppressionLoss",
    "BalancedGroupSoftmaxLoss",
    "DropLoss",
    "FederatedLoss",
    "SoftmaxEqualizationLoss",
}
COUNTING = {
    "EqualizationLossV2",
    "EqualizedFocalLoss",
    "ForegroundClassificationBalanceLoss",
    "InfluenceBalancedLoss",
    "LDAMLoss",
    "SeesawLoss",
}
every_loss = pytest.mark.parametrize("name", sorted(name for name, _ in CLS_LOSS_REGISTRY))


@pytest.fixture
def make(frequencies):
    def make(name, num_classes=K):
        loss_class = CLS_LOSS_REGISTRY.get(name)
        needs_counts = "frequencies" in inspect.signature(loss_class).parameters
        return loss_class(num_classes, **({"frequencies": frequencies} if needs_counts else {}))

    return make


def a_batch(loss, rows=R):
    logits = torch.randn(rows, loss.num_logits, dtype=torch.float64)
    return logits, torch.arange(rows) % (K + 1), torch.rand(rows, D, dtype=torch.float64)


def step(loss, logits, gt_classes, features):
    logits = logits.clone().requires_grad_()
    torch.manual_seed(1)
    value = loss(logits, gt_classes, features)
    value.backward()
    return value.detach(), logits.grad


@every_loss
def test_the_sums_left_to_autograd_are_those_made_by_hand(make, name, monkeypatch):
    by_hand, by_autograd = make(name), make(name)
    for _ in range(2):  # the second with what the first has counted
        batch = a_batch(by_hand)
        expected = step(by_hand, *batch)
        with monkeypatch.context() as patch:
            patch.setattr(fused, "is_transformed", lambda: True)
            actual = step(by_autograd, *batch)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-14)
    for buffer, of_other in zip(by_hand.state_dict().values(), by_autograd.state_dict().values(), strict=True):
        torch.testing.assert_close(buffer, of_other, rtol=1e-9, atol=1e-12)


@every_loss
def test_grad_of_torch_func(make, name, record_property):
    loss = make(name)
    logits, gt_classes, features = a_batch(loss)
    grad = torch.func.grad(lambda z: loss(z, gt_classes, features))
    if name in COUNTING:
        with pytest.raises(InputError, match=r"torch\.func.*call \.eval\(\)"):
            grad(logits)
        record_property("result", "after `.eval()`")
        loss.eval()
    torch.manual_seed(1)
    actual = grad(logits)
    torch.testing.assert_close(actual, step(loss, logits, gt_classes, features)[1], rtol=1e-9, atol=1e-14)


@every_loss
def test_vmap(make, name):
    loss = make(name).eval()
    batches = [x.view(2, R // 2, *x.shape[1:]) for x in a_batch(loss)]
    actual = torch.func.vmap(loss, randomness="same")(*batches)
    assert actual.shape == (2,) and actual.isfinite().all()
    if name not in RANDOM:
        torch.testing.assert_close(actual, torch.stack([loss(*batch) for batch in zip(*batches, strict=True)]))


@every_loss
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing_is_right_or_refused(make, name, use_reentrant, record_property):
    loss, plain = make(name), make(name)
    logits, gt_classes, features = a_batch(loss)
    expected = step(plain, logits, gt_classes, features)[1]
    logits.requires_grad_()
    torch.manual_seed(1)
    value = checkpoint(lambda z: loss(1 * z, gt_classes, features), logits, use_reentrant=use_reentrant)
    try:
        value.backward()
    except InputError as error:
        assert name in COUNTING and "activation checkpointing" in str(error)
        record_property("result", "error")
        return
    torch.testing.assert_close(logits.grad, expected)
    for buffer, of_other in zip(loss.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(buffer, of_other)


@every_loss
def test_it_is_made_without_data(make, name):
    with torch.device("meta"):
        loss = make(name)
    assert all(buffer.device.type == "meta" for buffer in loss.buffers())


@every_loss
def test_it_is_copied_pickled_averaged_and_converted(make, name):
    loss = make(name)
    batch = a_batch(loss)
    model = nn.Sequential(nn.Linear(2, 2), loss)
    averaged = AveragedModel(model, use_buffers=True)
    averaged.update_parameters(model)
    averaged.update_parameters(model)
    expected = step(copy.deepcopy(loss), *batch)
    for other in (pickle.loads(pickle.dumps(loss)), copy.deepcopy(loss).double(), averaged.module[1]):
        torch.testing.assert_close(step(other, *batch), expected)
    other = make(name)
    other.load_state_dict(loss.state_dict(), assign=True)
    torch.testing.assert_close(step(other, *batch), expected)


@every_loss
def test_a_generator_decides_what_is_drawn(make, name):
    """And the global one is left alone."""
    values = []
    for seed in (3, 3, 4):
        loss = make(name)
        torch.manual_seed(0)
        batch = a_batch(loss)
        before = torch.get_rng_state()
        values.append(loss(*batch, generator=torch.Generator().manual_seed(seed)))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(values[0], values[1])
    assert name in RANDOM or torch.equal(values[0], values[2])


@every_loss
def test_reductions(make, name):
    loss = make(name).eval()
    batch = a_batch(loss)
    values = {}
    for reduction in ("mean", "sum", "none"):
        torch.manual_seed(1)
        values[reduction] = loss(*batch, reduction=reduction)
    assert values["none"].shape == (R,)
    torch.testing.assert_close(values["none"].sum(), values["sum"])
    torch.testing.assert_close(values["sum"] / R, values["mean"])
    with pytest.raises(InputError, match="'mean', 'sum' or 'none', got 'avg'"):
        loss(*batch, reduction="avg")


@every_loss
@pytest.mark.parametrize(
    "labels, message",
    [
        ([0] * (R - 1), r"one label for each row of logits: .*gt_classes \(23,\)"),
        ([0], r"gt_classes \(1,\)"),
        ([0] * (R - 1) + [K + 1], r"labels in \[0, 7\] \(7: background\), got 0 to 8"),
        ([0] * (R - 1) + [-1], "got -1 to 0"),
        ([-100] * R, "got -100 to -100"),
        ([0.0] * R, r"an integer type, got torch.float32 \(24,\)"),
        ([True] * R, "an integer type, got torch.bool"),
    ],
)
def test_wrong_labels_are_refused(make, name, labels, message):
    loss = make(name)
    logits, _, features = a_batch(loss)
    before = copy.deepcopy(loss.state_dict())
    with pytest.raises(InputError, match=message):
        loss(logits, torch.tensor(labels), features)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), loss.state_dict().values(), strict=True))


@every_loss
def test_what_is_no_tensor_of_its_kind_is_refused(make, name):
    loss = make(name)
    logits, gt_classes, features = a_batch(loss)
    known = torch.ones(R, K, dtype=torch.bool)
    for wrong, message in [
        ((logits.numpy(), gt_classes, features), "logits as a tensor .* of a float type, got ndarray"),
        ((logits[0], gt_classes, features), r"of a float type, got torch.float64 \("),
        ((logits.long(), gt_classes, features), "of a float type, got torch.int64"),
        ((logits, gt_classes.tolist(), features), "gt_classes as a tensor of an integer type, got list"),
        ((logits, gt_classes, features[:1]), r"features of each of 24 RoIs, got torch.float64 \(1, 16\)"),
        ((logits, gt_classes, features, known[0]), r"negatives as a bool tensor \(24, 7\) .* got torch.bool \(7,\)"),
        ((logits, gt_classes, features, known.float()), r"got torch.float32 \(24, 7\)"),
    ]:
        with pytest.raises(InputError, match=message):
            loss(*wrong)


@every_loss
def test_labels_may_be_int32(make, name):
    loss = make(name)
    logits, gt_classes, features = a_batch(loss)
    expected = step(copy.deepcopy(loss), logits, gt_classes, features)
    torch.testing.assert_close(step(loss, logits, gt_classes.int(), features), expected, rtol=0, atol=0)


@every_loss
def test_it_shows_its_arguments(make, name):
    shown = repr(make(name))
    assert shown.startswith(f"{name}(num_classes=7") or f"{name}(\n  num_classes=7" in shown
    for argument in inspect.signature(CLS_LOSS_REGISTRY.get(name)).parameters:
        assert f"{argument}=" in shown


@pytest.mark.parametrize(
    "name", ["LDAMLoss", "WeightedCrossEntropy", "ClassBalancedLoss", "LogitAdjustedLoss", "BalancedGroupSoftmaxLoss"]
)
def test_missing_counts_are_told_when_it_is_made(name):
    loss_class = CLS_LOSS_REGISTRY.get(name)
    with pytest.raises(InputError, match=r"no instance counts: give ClassFrequencies\(instance_count=\.\.\.\)"):
        loss_class(2, frequencies=ClassFrequencies([1, 2]))
    with pytest.raises(InputError, match=r"frequencies must be whole numbers, got 1\.5 of category 1"):
        loss_class(2, frequencies=[2.0, 1.5])
    for value in (float("nan"), float("inf"), 1j):
        with pytest.raises(InputError, match="frequencies must be whole numbers, got .* of category 1"):
            loss_class(3, frequencies=[2, value, 1])
    for wrong in ({"cat": 1}, ["3", "4"], [[3], [4]], 5):
        with pytest.raises(InputError, match="ClassFrequencies, the path of a counts file, or a sequence"):
            loss_class(2, frequencies=wrong)
    loss_class(2, frequencies=[3, 4])  # samples of each class


def test_counts_may_be_a_file_of_them(tmp_path):
    file = str(tmp_path / "counts.json")
    ClassFrequencies([1, 2, 3], [2, 3, 4], num_images=9).save(file)
    loss = CLS_LOSS_REGISTRY.get("WeightedCrossEntropy")(3, frequencies=file)
    torch.testing.assert_close(
        1 / loss.class_weight[:3], torch.tensor([2, 3, 4]) * loss.class_weight[0].reciprocal() / 2
    )


@pytest.mark.parametrize("number", [0, 2.5, "3", None])
def test_a_number_of_classes_that_cannot_be(number):
    with pytest.raises(InputError, match="num_classes must be a whole number of at least 1, got"):
        CLS_LOSS_REGISTRY.get("SoftmaxCrossEntropy")(number)


def test_a_number_for_each_of_many_categories_is_shown_short():
    counts = list(range(1, 1204))
    loss = CLS_LOSS_REGISTRY.get("LogitAdjustedLoss")(1203, frequencies=counts)
    assert repr(loss) == "LogitAdjustedLoss(num_classes=1203, tau=1.0, frequencies=[1, 2, 3, 4, 5, 6, ...])"


def test_tails_as_plain_values():
    loss_class = CLS_LOSS_REGISTRY.get("EqualizationLoss")
    masks = [loss_class(3, frequencies=[5, 50, 500], tail=tail).tail_mask.tolist() for tail in (100, "r", 0.02)]
    assert masks == [[True, True, False], [True, False, False], [True, False, False]]
    with pytest.raises(InputError, match="tail must be a TailRule"):
        loss_class(3, frequencies=[5, 50, 500], tail=[1])
