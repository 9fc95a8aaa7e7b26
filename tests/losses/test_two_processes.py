"""Each registered loss in two processes, which have half of a batch each, against one process with the joined batch.

DDP averages gradients, so the mean of the two losses, half of each gradient, and every persistent buffer must be those
of the joined batch. A new loss is tested here without a change; one whose formula is no mean over RoIs goes into
NO_MEAN.

All losses share one pair of processes (gloo), which are this file run as a script.
"""

import inspect
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch.utils._python_dispatch import TorchDispatchMode

from eql_d2 import CLS_LOSS_REGISTRY, ClassFrequencies
from eql_d2.losses import SoftmaxLoss

K, D, R, STEPS = 7, 16, 24, 3  # R RoIs a process
ROOT = Path(__file__).parents[2]

# Losses of which the mean over processes is not the joined batch's, and why. Of these must hold: the state is the
# joined batch's, and where both processes have the same RoIs, so is everything else.
NO_MEAN = {
    "FederatedLoss, subset_size=2": "trains the categories of a process's RoIs, and draws the others for itself",
    "InfluenceBalancedLoss": "weights are scaled to mean 1 over the foreground RoIs of a process",
    "WeightedCrossEntropy, normalize_by=weights": "divides by the weights of a process's RoIs, as torch's own does",
}


class SharedPrior(SoftmaxLoss):
    """What a loss with state does: counts of all processes, in use in the step they are made in; and a random mask."""

    def __init__(self, num_classes, shared=True):
        super().__init__(num_classes)
        self.shared = shared
        self.register_buffer("seen", torch.zeros(num_classes + 1, dtype=torch.int64))

    def forward(self, logits, gt_classes, features=None, negatives=None):
        seen = torch.bincount(gt_classes, minlength=self.num_classes + 1)
        if self.shared and comm.get_world_size() > 1:
            dist.all_reduce(seen)
        self.seen += seen
        return super().forward(logits, gt_classes, features, negatives)

    def compute(self, logits, rois):
        kept = torch.empty_like(logits).bernoulli_(0.5)
        log_p = (logits + self.seen.clamp(min=1).log()).log_softmax(1)
        return -(log_p.gather(1, rois.gt_classes[:, None]) * kept[:, :1])[:, 0]


CASES = {
    **{name: (loss_class, {}) for name, loss_class in CLS_LOSS_REGISTRY},
    "FederatedLoss, subset_size=2": (CLS_LOSS_REGISTRY.get("FederatedLoss"), {"subset_size": 2}),
    "WeightedCrossEntropy, normalize_by=weights": (
        CLS_LOSS_REGISTRY.get("WeightedCrossEntropy"),
        {"normalize_by": "weights"},
    ),
    "a loss with state": (SharedPrior, {}),
    "a loss that does not share its state": (SharedPrior, {"shared": False}),
}
LOSSES = sorted(set(CASES) - {"a loss that does not share its state"})
# How the joined batch is shared out: how many RoIs each process has, and whether the two have the same ones.
SPLITS = {"halves": ((R, R), False), "equal halves": ((R, R), True), "all in one": ((2 * R, 0), False)}


class RandomDraws(TorchDispatchMode):
    """Records what random operations of torch draw, or replays it: rand, bernoulli_, exponential_, multinomial, ...

    It catches whatever torch itself tags as random. A replayed draw of as many RoIs as the joined batch is cut to those
    of this process, one of half as many is repeated, and one of another shape (of categories) is taken as it is.
    """

    def __init__(self, replay=None, rois=slice(None)):
        super().__init__()
        self.draws, self.replay, self.rois = [], replay and list(replay), rois

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            if self.replay is None:
                self.draws.append(result.clone())
            else:
                result.copy_(self.fit(self.replay.pop(0), result.shape))
        return result

    def fit(self, draw, shape):
        if draw.shape == shape:
            return draw
        if len(draw) == 2 * R:
            draw = draw[self.rois]
        elif len(draw) == R:
            draw = torch.cat([draw, draw])
        assert draw.shape == shape, f"a draw of shape {tuple(draw.shape)} where {tuple(shape)} is asked for"
        return draw


def a_loss(case):
    loss_class, arguments = CASES[case]
    if "frequencies" in inspect.signature(loss_class.__init__).parameters:
        arguments = {**arguments, "frequencies": some_frequencies()}
    return loss_class(num_classes=K, **arguments)


def some_frequencies():
    return ClassFrequencies(
        image_count=[1, 9, 10, 11, 100, 101, 400],
        instance_count=[1, 20, 10, 30, 150, 202, 900],
        num_images=1000,
    )


def batches(num_logits, equal):
    """STEPS joined batches of 2 R RoIs, each half without a category; ``equal``: the second half repeats the first."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        logits = 3 * torch.randn(2 * R, num_logits, generator=generator, dtype=torch.float64)
        gt_classes = torch.randint(0, K, (2, R), generator=generator)
        gt_classes = torch.stack([gt_classes[0], gt_classes[1] + 1]).flatten()  # 0 to K - 1, and 1 to K, background
        features = torch.rand(2 * R, D, generator=generator, dtype=torch.float64)
        negatives = torch.rand(2 * R, K, generator=generator) < 0.7
        negatives |= torch.nn.functional.one_hot(gt_classes, K + 1)[:, :K].bool()  # its own class is known
        batch = logits, gt_classes, features, negatives
        yield tuple(torch.cat([x[:R], x[:R]]) for x in batch) if equal else batch


def train(case, equal, rois=slice(None), replay=None):
    """What STEPS steps on these RoIs of the batches give: losses, gradients, states after each, and the draws."""
    loss = a_loss(case)
    values, gradients, states, draws = [], [], [], []
    for i, batch in enumerate(batches(loss.num_logits, equal)):
        logits, *others = (x[rois] for x in batch)
        logits.requires_grad_()
        with RandomDraws(replay[i] if replay else None, rois) as drawn:
            value = loss(logits, *others)
            value.backward()
        values.append(value.detach())
        gradients.append(logits.grad)
        states.append({name: x.clone() for name, x in loss.state_dict().items()})
        draws.append(drawn.draws)
    return {"values": values, "gradients": gradients, "states": states, "draws": draws}


def joined(case, split):
    """The joined batch in one process. Where the halves are equal, their draws are too."""
    _, equal = SPLITS[split]
    if not equal:
        return train(case, equal)
    half = train(case, equal, slice(0, R))
    return {**train(case, equal, replay=half["draws"]), "draws": half["draws"]}


def rois_of(rank, split):
    (first, second), _ = SPLITS[split]
    return slice(0, first) if rank == 0 else slice(first, first + second)


def run_as_process(rank, folder):
    """Train each loss on this process's RoIs, with the draws of the joined batch, and write down what came out."""
    dist.init_process_group("gloo", f"file://{folder}/group", rank=rank, world_size=2, timeout=timedelta(seconds=20))
    draws = torch.load(folder / "draws.pth")
    results = {}
    for key in draws:
        case, split = key
        try:
            results[key] = train(case, SPLITS[split][1], rois_of(rank, split), draws[key])
        except Exception as error:
            results[key] = f"{type(error).__name__}: {error}"
            torch.save(results, folder / f"{rank}.pth")  # the other process may wait for this one in vain
            raise
    torch.save(results, folder / f"{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """{(case, split): (of the joined batch, [of each process])}"""
    folder = tmp_path_factory.mktemp("two_processes")
    expected = {(case, split): joined(case, split) for case in CASES for split in SPLITS}
    torch.save({key: result["draws"] for key, result in expected.items()}, folder / "draws.pth")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], env=environment, stderr=subprocess.PIPE)
        for rank in (0, 1)
    ]
    errors = [process.communicate()[1].decode() for process in processes]
    found = [torch.load(folder / f"{rank}.pth") for rank in (0, 1)]
    for key in expected:
        for rank, of_process in enumerate(found):
            if isinstance(of_process.get(key, "not run"), str):
                pytest.fail(f"process {rank}, {key}: {of_process.get(key)}\n{errors[rank][-3000:]}")
    return {key: (expected[key], [of_process[key] for of_process in found]) for key in expected}


def assert_same_states(one, two):
    for expected, *of_processes in zip(one["states"], two[0]["states"], two[1]["states"], strict=True):
        for state in of_processes:
            torch.testing.assert_close(state, expected, rtol=1e-6, atol=1e-6)


def assert_same_losses_and_gradients(one, two):
    mean = [(a + b) / 2 for a, b in zip(two[0]["values"], two[1]["values"])]
    torch.testing.assert_close(mean, one["values"], rtol=1e-6, atol=1e-6)
    gradients = [torch.cat(halves) / 2 for halves in zip(two[0]["gradients"], two[1]["gradients"])]
    torch.testing.assert_close(gradients, one["gradients"], rtol=1e-6, atol=1e-6 / R)


@pytest.mark.parametrize("case", LOSSES)
def test_halves(results, case):
    one, two = results[case, "halves"]
    assert_same_states(one, two)
    if case not in NO_MEAN:
        assert_same_losses_and_gradients(one, two)
    else:  # else it would have no place in the table
        with pytest.raises(AssertionError, match="not close"):
            assert_same_losses_and_gradients(one, two)


@pytest.mark.parametrize("case", LOSSES)
def test_equal_halves(results, case):
    one, two = results[case, "equal halves"]
    assert_same_states(one, two)
    assert_same_losses_and_gradients(one, two)


@pytest.mark.parametrize("case", LOSSES)
def test_a_process_without_rois(results, case):
    """It adds nothing, and keeps the other one from nothing, neither in an exchange of statistics nor in its count.

    The other one's loss is the joined batch's, or twice as much, where a loss divides by the RoIs of all processes.
    """
    one, (all_rois, none) = results[case, "all in one"]
    assert all(value == 0 for value in none["values"])
    share = 1 if torch.isclose(all_rois["values"][0], one["values"][0], rtol=1e-6) else 2
    expected = [share * value for value in one["values"]]
    torch.testing.assert_close(all_rois["values"], expected, rtol=1e-6, atol=1e-6)
    assert_same_states(one, (all_rois, none))


def test_a_state_that_is_not_shared_is_found(results):
    one, two = results["a loss that does not share its state", "halves"]
    with pytest.raises(AssertionError, match="not close|not equal"):
        assert_same_states(one, two)
    with pytest.raises(AssertionError, match="not close"):
        assert_same_losses_and_gradients(one, two)


def test_the_draws_are_those_of_the_joined_batch(results):
    """The random losses do draw, so that what is replayed matters."""
    for case in ("a loss with state", "SoftmaxEqualizationLoss"):
        assert all(results[case, "halves"][0]["draws"])
    assert not any(results["SoftmaxCrossEntropy", "halves"][0]["draws"])


if __name__ == "__main__":
    run_as_process(int(sys.argv[1]), Path(sys.argv[2]))
