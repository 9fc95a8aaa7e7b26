import copy
import math

import pytest
import torch
from torch.nn import functional as F

from eql_d2 import ClassFrequencies
from eql_d2.data.frequencies import FrequenciesNotFound
from eql_d2.losses import BalancedGroupSoftmaxLoss

K = 7
OBJECTS = [1, 20, 10, 30, 150, 202, 900]  # of the fixture
GROUPS = [[K], [0], [1, 2, 3], [4, 5, 6], []]  # classes of each group at the default bounds
G = len(GROUPS)


def a_batch(gt_classes=None):
    gt_classes = torch.arange(40) % (K + 8) if gt_classes is None else torch.tensor(gt_classes)
    logits = torch.randn(len(gt_classes), K + 1 + G, dtype=torch.float64) * 3
    return logits.requires_grad_(), gt_classes.clamp(max=K)


def columns(g):
    """The logits of group g: its classes, and "others"."""
    return GROUPS[g] + [K + 1 + g]


def reference(logits, gt_classes, draw, beta):
    """(value, gradient) of the formula, term by term, with the given draw."""
    labels, z = gt_classes.tolist(), logits.tolist()
    total, gradient = 0.0, torch.zeros_like(logits)
    for g, members in enumerate(GROUPS):
        inside = sum(c in members for c in labels)
        outside = len(labels) - inside
        if inside == 0:
            continue
        chance = 1.0 if g == 0 or outside == 0 else min(1.0, beta * inside / outside)
        N = inside + chance * outside
        for i, c in enumerate(labels):
            if c not in members and not draw[i][g] < chance:
                continue
            target = c if c in members else K + 1 + g
            denominator = sum(math.exp(z[i][k]) for k in columns(g))
            total -= math.log(math.exp(z[i][target]) / denominator) / N
            for k in columns(g):
                gradient[i, k] += (math.exp(z[i][k]) / denominator - (k == target)) / N
    return total, gradient


@pytest.mark.parametrize("beta", [8.0, 1.0, 0.0])
def test_three_steps_equal_the_loop(frequencies, beta):
    loss = BalancedGroupSoftmaxLoss(K, frequencies=frequencies, others_ratio=beta)
    batches = [a_batch(), a_batch([0] + [K] * 20 + [4, 5]), a_batch([1, 2, 3, 1] + [K] * 30)]
    torch.manual_seed(3)
    draws = [torch.rand(len(gt_classes), G).tolist() for _, gt_classes in batches]
    torch.manual_seed(3)
    for draw, (logits, gt_classes) in zip(draws, batches):
        value, gradient = reference(logits.detach(), gt_classes, draw, beta)
        result = loss(logits, gt_classes)
        result.backward()
        assert result.item() == pytest.approx(value, rel=1e-12)
        torch.testing.assert_close(logits.grad, gradient, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize(
    "dataset, sizes", [("lvis_v0.5_train", [294, 453, 302, 181]), ("lvis_v1_train", [200, 412, 334, 257])]
)
def test_groups_of_lvis(dataset, sizes):
    """v0.5's are the authors'."""
    frequencies = ClassFrequencies.from_dataset(dataset)
    loss = BalancedGroupSoftmaxLoss(len(frequencies), frequencies=frequencies)
    assert loss.group[:-1].unique(return_counts=True)[1].tolist() == sizes
    assert loss.group[-1] == 0 and loss.num_logits == len(frequencies) + 6
    for g, (low, high) in enumerate(zip([0, 10, 100, 1000], [10, 100, 1000, math.inf]), 1):
        objects = frequencies.instance_count[loss.group[:-1] == g]
        assert (objects >= low).all() and (objects < high).all()


@pytest.mark.parametrize("bounds", [(), (21,), (10, 20, 30, 202, 5000)])
def test_other_bounds(bounds):
    frequencies = ClassFrequencies(OBJECTS, OBJECTS, num_images=1000)
    loss = BalancedGroupSoftmaxLoss(K, frequencies=frequencies, bounds=bounds)
    expected = [1 + sum(n >= bound for bound in bounds) for n in OBJECTS]
    assert loss.group.tolist() == expected + [0]
    assert loss.num_logits == K + 1 + len(bounds) + 2
    logits = torch.randn(9, loss.num_logits, requires_grad=True)
    loss(logits, torch.arange(9) % (K + 1)).backward()
    assert logits.grad.isfinite().all() and loss.probs(logits).shape == (9, K + 1)


def test_one_group_that_keeps_all_is_two_cross_entropies(frequencies):
    loss = BalancedGroupSoftmaxLoss(K, frequencies=frequencies, bounds=(), others_ratio=1e9)
    logits, gt_classes = torch.randn(30, K + 3), torch.arange(30) % (K + 1)
    is_object = (gt_classes < K).long()
    background = F.cross_entropy(logits[:, [K, K + 1]], is_object)
    categories = F.cross_entropy(logits[:, [*range(K), K + 2]], gt_classes)  # K: others
    torch.testing.assert_close(loss(logits, gt_classes), background + categories)


def test_without_foreground_only_background_is_trained(frequencies):
    logits, gt_classes = a_batch([K] * 6)
    loss = BalancedGroupSoftmaxLoss(K, frequencies=frequencies)
    value = loss(logits, gt_classes)
    value.backward()
    torch.testing.assert_close(value, F.cross_entropy(logits[:, [K, K + 1]], torch.zeros(6, dtype=torch.int64)))
    assert ((logits.grad != 0).any(0).nonzero()[:, 0]).tolist() == [K, K + 1]


def test_without_background_and_others_each_group_is_its_cross_entropy(frequencies):
    logits, gt_classes = a_batch([1, 2, 3, 1])
    within = F.cross_entropy(logits[:, columns(2)], gt_classes - 1)
    is_object = F.cross_entropy(logits[:, columns(0)], torch.ones(4, dtype=torch.int64))
    loss = BalancedGroupSoftmaxLoss(K, frequencies=frequencies)
    torch.testing.assert_close(loss(logits, gt_classes), within + is_object)


def test_others_are_kept_in_proportion(frequencies):
    """8 for each RoI of the group on average, within 4 standard deviations; and 1 / N_g makes the weights sum to 1."""
    loss = BalancedGroupSoftmaxLoss(K, frequencies=frequencies)
    gt_classes = torch.tensor([0] * 2 + [1] * 5 + [K] * 193)
    weights = torch.stack([loss.draw_weights(gt_classes) for _ in range(400)])
    kept = (weights > 0).double()
    assert (kept[:, :, 0] == 1).all() and (kept[:, :, 3:] == 0).all()
    for g, inside in ((1, slice(0, 2)), (2, slice(2, 7))):
        members = inside.stop - inside.start
        others, chance = 200 - members, 8 * members / (200 - members)
        assert (kept[:, inside, g] == 1).all()
        number = kept[:, :, g].sum(1) - members
        sigma = math.sqrt(others * chance * (1 - chance))
        assert abs(number.mean().item() - 8 * members) < 4 * sigma / 20
        assert abs(number.std().item() / sigma - 1) < 0.2
        assert weights[..., g].sum(1).mean().item() == pytest.approx(1, abs=4 * sigma / 20 / (9 * members))
    together = (kept[:, 7:, 1] * kept[:, 7:, 2]).mean().item()  # drawn for each group by itself
    assert together == pytest.approx(16 / 198 * 40 / 195, rel=0.1)


def test_scores(frequencies):
    logits = a_batch()[0].detach()
    expected = torch.zeros(len(logits), K + 1, dtype=torch.float64)
    for i, z in enumerate(logits.tolist()):
        P = {}
        for g, members in enumerate(GROUPS):
            denominator = sum(math.exp(z[k]) for k in columns(g))
            P.update({k: math.exp(z[k]) / denominator for k in members})
        expected[i, K] = P[K]
        expected[i, :K] = torch.tensor([P[j] * (1 - P[K]) for j in range(K)])
    probs = BalancedGroupSoftmaxLoss(K, frequencies=frequencies).probs(logits)
    torch.testing.assert_close(probs, expected)


def test_a_checkpoint_holds_the_groups(frequencies):
    logits, gt_classes = a_batch()
    trained = BalancedGroupSoftmaxLoss(K, frequencies=frequencies)
    for others in (
        FrequenciesNotFound("no counts of 'x'"),
        ClassFrequencies(OBJECTS[::-1], OBJECTS[::-1], num_images=1000),
    ):
        loss = BalancedGroupSoftmaxLoss(K, frequencies=others)
        loss.load_state_dict(trained.state_dict())
        assert torch.equal(loss.probs(logits), trained.probs(logits))
        assert torch.equal(copy.deepcopy(loss).probs(logits), trained.probs(logits))
    with pytest.raises(ValueError, match="7 categories are in another group in the checkpoint.*trained with"):
        loss(logits, gt_classes)  # to train on would mean other groups from here on


@pytest.mark.parametrize("groups", [[-1, 1, 2, 3, 4, 4, 4, 0], [1, 1, 1, 1, 99, 4, 4, 0], [1, 1, 1, 1, 4, 4, 4, 4]])
def test_groups_that_cannot_be_are_refused(frequencies, groups):
    loss = BalancedGroupSoftmaxLoss(K, frequencies=frequencies)
    with pytest.raises(ValueError, match=r"groups of categories are .*set `bounds`"):
        loss.load_state_dict({"group": torch.tensor(groups)})


def test_without_counts_and_checkpoint_it_says_what_to_do():
    loss = BalancedGroupSoftmaxLoss(K, frequencies=FrequenciesNotFound("no counts of 'x'"))
    with pytest.raises(ValueError, match="load a checkpoint.*or give the counts. no counts of 'x'"):
        loss.probs(torch.zeros(1, K + 6))


@pytest.mark.parametrize("objects", [0, 5000])
@pytest.mark.parametrize("gt_classes", [[0, 1], [0], [1]])
def test_one_category(objects, gt_classes):
    loss = BalancedGroupSoftmaxLoss(1, frequencies=ClassFrequencies([objects], [objects]))
    logits = torch.randn(len(gt_classes), 7, requires_grad=True)
    value = loss(logits, torch.tensor(gt_classes))
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()
    assert ((loss.probs(logits) >= 0) & (loss.probs(logits) <= 1)).all()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"bounds": (10, 10)}, r"bounds must ascend, got \(10, 10\)"),
        ({"others_ratio": -1.0}, r"others_ratio must be in \[0, inf\), got -1.0"),
    ],
)
def test_wrong_arguments(frequencies, arguments, message):
    with pytest.raises(ValueError, match=message):
        BalancedGroupSoftmaxLoss(K, frequencies=frequencies, **arguments)
