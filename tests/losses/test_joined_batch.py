"""Losses that draw or normalise by the batch mean that of all processes: two halves make one step of the whole.

The exchange between processes is played here by summing what each half hands to it.
"""

import importlib

import pytest
import torch

from eql_d2 import ClassFrequencies
from eql_d2.losses import CLS_LOSS_REGISTRY, balanced_group_softmax_loss, statistics

MODULES = {
    "DropLoss": "drop_loss",
    "BalancedGroupSoftmaxLoss": "balanced_group_softmax_loss",
}
K, R = 60, 64


def step(loss, logits, gt_classes, seed):
    logits = logits.clone().requires_grad_()
    torch.manual_seed(seed)
    value = loss(logits, gt_classes)
    value.backward()
    return value.detach(), logits.grad


@pytest.fixture(params=sorted(MODULES))
def name(request):
    return request.param


@pytest.fixture
def loss(name):
    images = [1 + j * j // 3 for j in range(K)]
    frequencies = ClassFrequencies(images, [1 + j * j for j in range(K)], num_images=5000)
    return CLS_LOSS_REGISTRY.get(name)(K, frequencies=frequencies)


@pytest.fixture
def as_process(name, monkeypatch):
    """Sets which of two processes the next step is of, and how it exchanges what it hands over."""
    module = importlib.import_module(f"eql_d2.losses.{MODULES[name]}")
    rand = torch.rand

    def become(rank, exchange):
        def rows_of_the_joined_draw(*size, device=None, generator=None):
            rows, *rest = size[0] if isinstance(size[0], tuple) else size
            return rand(2 * rows, *rest)[rank * rows : (rank + 1) * rows]

        for place in (statistics, balanced_group_softmax_loss):
            monkeypatch.setattr(place, "world_size", lambda: 2)
        monkeypatch.setattr(torch, "rand", rows_of_the_joined_draw)
        monkeypatch.setattr(module, "sum_over_processes", exchange)

    return become


def test_two_halves_make_one_step_of_the_joined_batch(loss, as_process):
    logits = torch.randn(R, loss.num_logits, dtype=torch.float64) * 3
    gt_classes = torch.randint(0, 2 * K, (R,)).clamp(max=K)
    expected, expected_gradient = step(loss, logits, gt_classes, seed=5)

    halves = [slice(0, R // 2), slice(R // 2, R)]
    handed_over = []

    def hand_over(x):
        handed_over.append(x)
        return x

    for rank, half in enumerate(halves):
        as_process(rank, hand_over)
        step(loss, logits[half], gt_classes[half], seed=5)
    assert len(handed_over) == 2  # one exchange a step
    steps = []
    for rank, half in enumerate(halves):
        as_process(rank, lambda x: sum(handed_over))
        steps.append(step(loss, logits[half], gt_classes[half], seed=5))
    values, gradients = zip(*steps)
    torch.testing.assert_close(sum(values) / 2, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.cat(gradients) / 2, expected_gradient, rtol=1e-10, atol=1e-15)


def test_a_process_without_rois_takes_part(loss, as_process):
    """Else the others would wait for it; and what it hands over changes nothing."""
    gt_classes = torch.randint(0, 2 * K, (R,)).clamp(max=K)
    handed_over = []

    def hand_over(x):
        handed_over.append(x)
        return x

    as_process(1, hand_over)
    loss(torch.zeros(R, loss.num_logits), gt_classes)
    loss(torch.zeros(0, loss.num_logits), gt_classes[:0])
    of_rois, of_none = handed_over
    assert of_none.shape == of_rois.shape and of_none.dtype == of_rois.dtype and not of_none.any()
