"""Section `losses` of python -m speed: one training step of a loss, forward and backward, on its own.

Shape shorthand as in eql_d2/losses/base.py; a size is that of the logits in memory.
"""

import copy
import functools
import inspect
import os
from collections import Counter

import torch
from fvcore.nn import sigmoid_focal_loss
from torch.nn import functional as F

from eql_d2 import CLS_LOSS_REGISTRY, ClassFrequencies, TailRule
from speed.measuring import alternate

# R, K, dtype of the logits, and whether all losses are measured or only those that there is another code of.
CASES = (
    (512, 1203, torch.float32, False),
    (1024, 1203, torch.float32, True),
    (4096, 1203, torch.float32, False),
    (1024, 80, torch.float32, False),
    (1024, 5000, torch.float32, False),
    (1024, 1203, torch.bfloat16, False),
)
FLOOR, BCE = ("floor", "copy"), ("SigmoidCrossEntropy", "BCE, prebuilt target")
OURS, COMPILED = "eql_d2", "eql_d2, compiled"


def benchmark_losses(repeats: int) -> list[dict]:
    """One row for each implementation of each loss in each case."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler prints that there is no GPU
    rows = []
    for R, K, dtype, all_losses in CASES:
        torch.manual_seed(0)
        steps = make_steps(R, K, dtype)
        number = Counter(loss for loss, _ in steps)
        if not all_losses:
            steps = {key: steps[key] for key in steps if key == FLOOR or number[key[0]] > 1}
        seconds = alternate(steps, 5 * repeats)  # a step takes milliseconds
        for loss, implementation in steps:
            time = seconds[loss, implementation]
            baseline = next(key for key in steps if key[0] == loss)
            row = {
                "section": "losses",
                "case": f"{R} x {K}" + ("" if dtype is torch.float32 else ", bf16"),
                "loss": loss,
                "implementation": implementation,
                "ms": time * 1e3,
                "x BCE": time / seconds[BCE],
                "x floor": time / seconds[FLOOR],
            }
            if baseline != (loss, implementation):
                row["times faster"] = seconds[baseline] / time
            if loss != FLOOR[0]:
                step = steps[loss, implementation]
                row["sizes"] = peak_bytes(step) / (R * K * dtype.itemsize)
                draws_otherwise = implementation == "public port"
                row["error"] = step.error(step if draws_otherwise else steps.get((loss, OURS), step))
            rows.append(row)
    return rows


class Step:
    """One forward and backward of a loss.

    Args:
        loss: (logits, gt_classes) -> scalar; with state, if it is a module.
        logits: (R, num_logits).
        gt_classes: (R,).
    """

    def __init__(self, loss, logits: torch.Tensor, gt_classes: torch.Tensor):
        self.fresh = copy.deepcopy(loss)
        self.loss = loss
        self.logits = logits.detach().requires_grad_()
        self.gt_classes = gt_classes

    def __call__(self) -> torch.Tensor:
        self.logits.grad = None
        value = self.loss(self.logits, self.gt_classes)
        value.backward()
        return value.detach()

    def error(self, other: "Step") -> float:
        """Largest relative error of value and gradient, against the other's in float64 on the same draw.

        Of the second step of a fresh loss, so that what it accumulates takes part.
        """
        value, gradient = Step(copy.deepcopy(self.fresh), self.logits, self.gt_classes).second()
        exact = Step(copy.deepcopy(other.fresh), self.logits.double(), self.gt_classes)
        expected, expected_gradient = exact.second()
        of_gradient = (gradient - expected_gradient).abs().max() / expected_gradient.abs().max()
        return max(((value - expected) / expected).abs().item(), of_gradient.item())

    def second(self):
        """(value, gradient) of the second step from now."""
        torch.manual_seed(1)
        self()
        return self(), self.logits.grad


def make_steps(R: int, K: int, dtype: torch.dtype) -> dict:
    """{(loss, implementation): step}; the first implementation of a loss is what the others are compared with."""
    gt_classes = torch.where(torch.rand(R) < 0.25, torch.randint(0, K, (R,)), K)

    @functools.cache
    def logits_of(width: int) -> torch.Tensor:
        return (torch.randn(R, width) - 4).to(dtype)

    target = F.one_hot(gt_classes, K + 1)[:, :K].to(dtype)
    features = torch.rand(R, 1024)
    frequencies = frequencies_of(K)

    def bce(z, _y):
        return F.binary_cross_entropy_with_logits(z, target.to(z.dtype), reduction="sum") / R

    # A step must read the logits and write their gradient, as many bytes as a copy.
    destination = torch.empty_like(logits_of(K))
    steps = {
        FLOOR: lambda: destination.copy_(logits_of(K)),
        BCE: Step(bce, logits_of(K), gt_classes),
    }
    others = other_implementations(K, frequencies)
    for name, loss_class in CLS_LOSS_REGISTRY:
        loss = make_loss(loss_class, K, frequencies).to(gt_classes.device)
        implementations = {**others.get(name, {}), OURS: functools.partial(loss, features=features)}
        if loss.compiled is not None and name in others and dtype is torch.float32:
            compiled = copy.copy(loss)
            compiled.compiled = True
            implementations[COMPILED] = compiled
        for implementation, function in implementations.items():
            steps[name, implementation] = Step(function, logits_of(loss.num_logits), gt_classes)
    return steps


def make_loss(loss_class, K: int, frequencies: ClassFrequencies):
    """With its defaults, and counts where it takes them."""
    takes_counts = "frequencies" in inspect.signature(loss_class.__init__).parameters
    return loss_class(K, **({"frequencies": frequencies} if takes_counts else {}))


def frequencies_of(K: int) -> ClassFrequencies:
    """Those of LVIS v1, thinned out or repeated for another number of categories than 1,203."""
    lvis = ClassFrequencies.from_dataset("lvis_v1_train")
    if len(lvis) == K:
        return lvis
    which = torch.arange(K) * len(lvis) // K
    return ClassFrequencies(lvis.image_count[which], lvis.instance_count[which], lvis.num_images)


def other_implementations(K: int, frequencies) -> dict:
    """{our loss: {who: (logits, gt_classes) -> scalar}}: fvcore's, and authors' formulas as re-typed below."""
    return {
        "EqualizationLoss": {"authors' formula": lambda z, y: authors_eql(z, y, frequencies.frequency.to(z))},
        "SigmoidFocalLoss": {"fvcore": fvcore_focal},
        "AsymmetricLoss": {"authors' formula": authors_asl},
        "SoftmaxEqualizationLoss": {
            "public port": lambda z, y: port_of_softmax_eql(z, y, TailRule().mask(frequencies).to(z.device))
        },
        "EqualizationLossV2": {"authors' formula": AuthorsEQLv2(K)},
        "SeesawLoss": {"authors' formula": AuthorsSeesaw(K)},
    }


def authors_eql(z, y, frequency):
    """As in tztztztztz/eql.detectron2; 100.5 images are its lambda of 0.00177 on LVIS v0.5."""
    R, K = z.shape
    target = z.new_zeros(R, K + 1)
    target[torch.arange(R), y] = 1
    target = target[:, :K]
    is_foreground = (y != K).to(z.dtype).view(R, 1).expand(R, K)
    is_tail = z.new_zeros(K)
    is_tail[frequency < 100.5 / 99388] = 1
    weight = 1 - is_foreground * is_tail.view(1, K).expand(R, K) * (1 - target)
    loss = F.binary_cross_entropy_with_logits(z, target, reduction="none")
    return torch.sum(loss * weight) / R


def fvcore_focal(z, y):
    """With the target that fvcore wants."""
    target = F.one_hot(y, z.shape[1] + 1)[:, :-1].to(z.dtype)
    return sigmoid_focal_loss(z, target, alpha=0.25, gamma=2, reduction="sum") / len(z)


def authors_asl(z, y):
    """As in Alibaba-MIIL/ASL, with the whole gradient."""
    target = F.one_hot(y, z.shape[1] + 1)[:, :-1].to(z.dtype)
    p = torch.sigmoid(z)
    q = (1 - p + 0.05).clamp(max=1)
    loss = target * torch.log(p.clamp(min=1e-8)) + (1 - target) * torch.log(q.clamp(min=1e-8))
    p_t = p * target + q * (1 - target)
    return -(loss * torch.pow(1 - p_t, 1 * target + 4 * (1 - target))).sum() / len(z)


def port_of_softmax_eql(z, y, tail):
    """As in public ports for classification: exponentials as they are; with background spared, as ours has it."""
    R, C = z.shape
    target = F.one_hot(y, C).to(z.dtype)
    beta = (torch.rand(R, C) < 0.9).to(z.dtype)
    is_tail = torch.cat([tail, tail.new_zeros(1)]).to(z.dtype)
    is_foreground = (y < C - 1).to(z.dtype)[:, None]
    weight = 1 - beta * is_foreground * is_tail * (1 - target)
    exp = torch.exp(z)
    p = exp / (weight * exp).sum(dim=1, keepdim=True)
    return -(target * torch.log(p)).sum() / R


class AuthorsEQLv2(torch.nn.Module):
    """As in tztztztztz/eqlv2, for one process."""

    def __init__(self, K: int):
        super().__init__()
        self.positive, self.negative = torch.zeros(K), torch.zeros(K)
        self.ratio = torch.full((K,), 100.0)

    def forward(self, z, y):
        R, C = z.shape
        target = z.new_zeros(R, C)
        target[torch.arange(R), y] = 1
        of_negatives = torch.cat([1 / (1 + torch.exp(-12 * (self.ratio - 0.8))), torch.ones(1)])
        of_positives = 1 + 4 * (1 - of_negatives)
        weight = of_positives.expand(R, C) * target + of_negatives.expand(R, C) * (1 - target)
        loss = F.binary_cross_entropy_with_logits(z, target, reduction="none")
        gradient = ((z.detach().sigmoid() - target) * weight).abs()
        self.positive += (gradient * target).sum(0)[:-1]
        self.negative += (gradient * (1 - target)).sum(0)[:-1]
        self.ratio = self.positive / (self.negative + 1e-10)
        return (loss * weight).sum() / R


class AuthorsSeesaw(torch.nn.Module):
    """As in mmdetection, with all K^2 mitigation factors."""

    def __init__(self, K: int):
        super().__init__()
        self.counts = torch.zeros(K + 1)

    def forward(self, z, y):
        for c in y.unique():
            self.counts[c] += (y == c.item()).sum()
        counts = self.counts[:-1].clamp(min=1)
        foreground = y < len(counts)
        categories, own = z[foreground, :-2], y[foreground]
        ratio = counts[None, :] / counts[:, None]
        seesaw = torch.where(ratio < 1, ratio**0.8, 1)[own].to(z.dtype)
        p = categories.detach().softmax(1)
        ratio = p / p[torch.arange(len(own)), own][:, None].clamp(min=0.01)
        seesaw = seesaw * torch.where(ratio > 1, ratio**2, 1)
        others = 1 - F.one_hot(own, len(counts))
        loss = F.cross_entropy(categories + seesaw.log() * others, own, reduction="sum")
        return loss / len(z) + F.cross_entropy(z[:, -2:], (~foreground).long())


def peak_bytes(step) -> int:
    """What torch's CPU allocator hands out at most at a time in a call; in a :class:`Step` the gradient included."""
    if isinstance(step, Step):
        step.logits.grad = None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def plot_losses(rows: list[dict], file: str) -> None:
    """Time by number of RoIs, and memory, of the losses that there is another code of."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    compared = [FLOOR[0], *dict.fromkeys(row["loss"] for row in rows if "times faster" in row)]
    bars = []
    for loss, implementation in dict.fromkeys((row["loss"], row["implementation"]) for row in rows):
        if loss not in compared:
            continue
        color = "grey" if loss == FLOOR[0] else f"C{compared.index(loss) - 1}"
        of_1203 = [
            row
            for row in rows
            if (row["loss"], row["implementation"]) == (loss, implementation) and row["case"].endswith("x 1203")
        ]
        R = [int(row["case"].split(" x ")[0]) for row in of_1203]
        style = {OURS: "-o", COMPILED: ":o"}.get(implementation, "--")
        left.loglog(R, [row["ms"] for row in of_1203], style, color=color)
        if loss != FLOOR[0]:
            bars.append((f"{loss}, {implementation}", of_1203[0]["sizes"], color))
    left.set(
        xlabel="RoIs (1,203 categories)", ylabel="ms", title="A step (grey: floor, dashed: others, dotted: compiled)"
    )
    labels, sizes, colors = zip(*bars)
    right.barh(labels, sizes, color=colors)
    right.invert_yaxis()
    right.set(xlabel="sizes of the logits", title="Peak memory of a step")
    figure.tight_layout()
    figure.savefig(file, dpi=120)
