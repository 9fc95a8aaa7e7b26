"""torch.compile: every loss inside of a compiled training step, and the compiled losses' numbers across processes."""

import inspect
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from eql_d2.data.frequencies import ClassFrequencies
from eql_d2.losses import CLS_LOSS_REGISTRY, LateStart

pytestmark = pytest.mark.slow

K, D = 7, 16
SIZES = (24, 17, 40, 33, 64, 9, 25, 31, 50, 12, 80, 27, 19, 66, 35, 41, 22, 58, 13, 70)
RANDOM = {
    "AdaptiveClassSuppressionLoss",
    "BalancedGroupSoftmaxLoss",
    "DropLoss",
    "FederatedLoss",
    "SoftmaxEqualizationLoss",
}


def make(name):
    frequencies = ClassFrequencies([1, 9, 10, 11, 100, 101, 400], [1, 20, 10, 30, 150, 202, 900], num_images=1000)
    late = name.startswith("late ")
    loss_class = CLS_LOSS_REGISTRY.get(name.removeprefix("late "))
    parameters = inspect.signature(loss_class).parameters
    arguments = {"frequencies": frequencies} if "frequencies" in parameters else {}
    changes = {"reweight_iter": 10, "start_iter": 10}  # amid the steps
    loss = loss_class(K, **arguments, **{key: changes[key] for key in changes.keys() & parameters.keys()})
    return LateStart(loss.plain(), loss, start_iter=5) if late else loss


LATE = ["late EqualizationLossV2", "late LDAMLoss"]


@pytest.mark.parametrize("name", sorted(name for name, _ in CLS_LOSS_REGISTRY) + LATE)
def test_in_a_compiled_step(name, record_property):
    """Equal to eager, state included, with at most two compilations in 20 steps of different numbers of RoIs."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    loss, eager = make(name), make(name)
    classifier = nn.Linear(D, loss.num_logits).double()

    def gradient(step, features, gt_classes):
        classifier.zero_grad()
        value = step(features, gt_classes)
        value.backward()
        return value.detach(), classifier.weight.grad.clone()

    compiled = torch.compile(lambda features, gt_classes: loss(classifier(features), gt_classes, features))
    for R in SIZES:
        features, gt_classes = torch.rand(R, D, dtype=torch.float64), torch.arange(R) % (K + 1)
        actual = gradient(compiled, features, gt_classes)
        if name in RANDOM:  # compiled code draws other numbers
            assert actual[0].isfinite() and actual[1].isfinite().all()
            continue
        expected = gradient(lambda x, y: eager(classifier(x), y, x), features, gt_classes)
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-12)
    if name not in RANDOM:
        torch.testing.assert_close(loss.state_dict(), eager.state_dict(), rtol=1e-8, atol=1e-12)
    record_property("result", counters["stats"]["unique_graphs"])
    assert counters["stats"]["unique_graphs"] <= 2
    assert not counters["graph_break"]


VALUE = """
import sys, torch
from eql_d2.losses import SigmoidFocalLoss
logits, gt_classes = torch.linspace(-3, 3, 40 * 7).view(40, 7), torch.arange(40) % 8
loss = SigmoidFocalLoss(7, gamma=float(sys.argv[1]))
for compiled in (True, False):
    loss.compiled = compiled
    z = logits.clone().requires_grad_()
    value = loss(z, gt_classes)
    value.backward()
    print(value.item(), z.grad.abs().sum().item())
"""


def test_the_cache_on_the_disk_keeps_numbers_apart(tmp_path):
    """In new processes of one cache folder each gamma gives its own value, and the gradient that fits it."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    for gamma in ("2.0", "1.0", "0.5", "2.0"):
        command = [sys.executable, "-W", "ignore", "-c", VALUE, gamma]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        compiled, eager = ([float(x) for x in line.split()] for line in result.stdout.splitlines()[-2:])
        assert compiled == pytest.approx(eager, rel=1e-5), gamma
