"""No loss makes the host wait for the GPU, which a training step then runs behind. Checked without a GPU.

A step, forward and backward, runs on fake CUDA tensors, which know a shape and a device but have no values. What
depends on values (``.item()``, ``x[mask]``, ``nonzero``, ``bincount``) raises. What waits without depending on them, a
tensor on the CPU or a copy from one device to another, is looked for in every operation.
"""

import inspect

import pytest
import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from eql_d2 import CLS_LOSS_REGISTRY
from eql_d2.losses import ClassificationLoss, LateStart, SigmoidLoss, SoftmaxEqualizationLoss


def has_fake_cuda() -> bool:
    try:
        with FakeTensorMode():
            return torch.empty(1, device="cuda").device.type == "cuda"
    except RuntimeError:
        return False


pytestmark = pytest.mark.skipif(
    not has_fake_cuda(), reason=f"torch {torch.__version__} makes no fake CUDA tensors without a driver"
)

K, D, R = 7, 16, 24
LOSSES = sorted(name for name, _ in CLS_LOSS_REGISTRY)
VALUE_DEPENDENT = (DataDependentOutputException, DynamicOutputShapeException)


class OneDevice(TorchDispatchMode):
    """Fails on any operation that takes or makes a tensor elsewhere than on CUDA."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_flatten((args, kwargs, result))[0]:
            if isinstance(x, torch.Tensor) and x.device.type != "cuda":
                raise AssertionError(f"{func} takes or makes a tensor on {x.device}")
        return result


@torch.no_grad()
def backward(value) -> dict:
    """What ``value.backward()`` computes, as {leaf's node: gradient}.

    Autograd's own engine asks the driver for the device, and there may be none.
    """
    nodes = []  # every one after those that lead to it, if read from the end

    def visit(node):
        if node is not None and node not in nodes:
            for following, _ in node.next_functions:
                visit(following)
            nodes.append(node)

    visit(value.grad_fn)
    gradients = {node: {} for node in nodes}
    gradients[value.grad_fn] = {0: torch.ones_like(value)}
    for node in reversed(nodes):
        if not node.next_functions:
            continue
        incoming = [gradients[node].get(i) for i in range(len(node._input_metadata))]
        outgoing = getattr(node, "apply", node)(*incoming)  # of a Function in Python; else C++
        outgoing = outgoing if isinstance(outgoing, tuple) else (outgoing,)
        for (following, i), gradient in zip(node.next_functions, outgoing):
            if following is not None and gradient is not None:
                before = gradients[following].get(i)
                gradients[following][i] = gradient if before is None else before + gradient
    return {node: gradients[node][0] for node in nodes if not node.next_functions}


def step(loss, negatives=None, dtype=torch.float32):
    """Two training steps on fake CUDA tensors: the second one has what the first accumulated."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        loss = loss.to("cuda")
        with torch.device("cuda"):
            logits = torch.randn(R, loss.num_logits, dtype=dtype, requires_grad=True)
            gt_classes = torch.randint(0, K + 1, (R,))
            features = torch.rand(R, D, dtype=dtype)
            if negatives:
                negatives = torch.ones(R, K, dtype=torch.bool)
        with OneDevice():
            for _ in range(2):
                (gradient,) = backward(loss(logits, gt_classes, features, negatives)).values()
        assert gradient.shape == logits.shape and gradient.device.type == "cuda"


@pytest.fixture(params=LOSSES)
def loss(request, frequencies):
    loss_class = CLS_LOSS_REGISTRY.get(request.param)
    takes_counts = "frequencies" in inspect.signature(loss_class.__init__).parameters
    return loss_class(num_classes=K, **({"frequencies": frequencies} if takes_counts else {}))


def test_backward_without_the_engine_is_autograds(frequencies):
    loss = SoftmaxEqualizationLoss(K, frequencies=frequencies, gamma=1.0)
    logits = torch.randn(R, K + 1, requires_grad=True)
    value = loss(logits * 2, torch.arange(R) % (K + 1)) + logits.logsumexp(1).sum()
    (gradient,) = backward(value).values()
    loss(logits * 2, torch.arange(R) % (K + 1)).backward()
    logits.logsumexp(1).sum().backward()
    torch.testing.assert_close(gradient, logits.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_does_not_wait(loss, dtype):
    step(loss, dtype=dtype)


def test_a_step_with_known_negatives_does_not_wait(loss):
    step(loss, negatives=True)


def test_a_step_that_is_counted_does_not_wait(loss):
    if type(loss).plain is not ClassificationLoss.plain:
        step(LateStart(loss.plain(), loss, start_iter=1))


class Bad(SigmoidLoss):
    """A loss that waits for the GPU, in the way of the function that it is given."""

    def __init__(self, wait):
        super().__init__(K, prior_prob=0.01)
        self.wait = wait
        self.weight = torch.rand(K)  # no buffer: it stays on the CPU

    def compute(self, logits, rois):
        return self.wait(self, logits, rois.gt_classes).expand(len(logits))


@pytest.mark.parametrize(
    "wait",
    [
        pytest.param(lambda self, z, y: z.sum() / (y < K).sum().item(), id="item"),
        pytest.param(lambda self, z, y: z.sum() if (y < K).any() else z.sum() * 0, id="if"),
        pytest.param(lambda self, z, y: z[y < K].sum(), id="boolean index"),
        pytest.param(lambda self, z, y: z.sum() * torch.bincount(y).sum(), id="bincount"),
        pytest.param(lambda self, z, y: z.sum() * y.unique().sum(), id="unique"),
    ],
)
def test_what_depends_on_values_is_found(wait):
    with pytest.raises(VALUE_DEPENDENT):
        step(Bad(wait))


@pytest.mark.parametrize(
    "wait",
    [
        pytest.param(lambda self, z, y: (z * self.weight.to(z.device)).sum(), id="copy to the GPU"),
        pytest.param(lambda self, z, y: z.cpu().sum(), id="copy to the CPU"),
        pytest.param(lambda self, z, y: z.sum() * torch.rand(()), id="drawn on the CPU"),
        pytest.param(lambda self, z, y: z[:, torch.tensor([0, 1])].sum(), id="index on the CPU"),
        pytest.param(lambda self, z, y: z.sum() * z.new_tensor(2.0), id="constant from the host"),
    ],
)
def test_another_device_is_found(wait):
    with pytest.raises(AssertionError, match="tensor on cpu"):
        step(Bad(wait))
