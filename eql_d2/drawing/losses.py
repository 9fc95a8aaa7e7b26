"""Pictures of what a loss does: the gradient of one category's logit, for a rare, a common and a frequent category.

They are made through the public contract of a loss alone (build from a config, call, autograd), so a new loss has its
picture without a change here. Shapes as in :mod:`eql_d2.losses.base`.
"""

import copy
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import get_cfg

from eql_d2.config import add_eql_config
from eql_d2.data.frequencies import SHIPPED_COUNTS, ClassFrequencies
from eql_d2.data.letters import GROUP_NAMES
from eql_d2.data.whole_files import make_folder, naming
from eql_d2.drawing.panels import GROUP_COLORS
from eql_d2.losses import ClassificationLoss, build_cls_loss

COUNTS = SHIPPED_COUNTS["lvis_v1_train"]
ROLES = {
    "foreground": "negative, on a foreground RoI\n(of another, frequent category)",
    "background": "negative, on a background RoI\n",
    "label": "positive: the label of its RoI\n",
}

# The RoI looked at is one of a batch, as Detectron2 samples them: a quarter is foreground, and objects come as often as
# in the training set. Each RoI is as in the middle of training: the scores of its label and of background are
# open, those of all other categories are low.
NUM_CONTEXT_ROIS = 128
OPEN_LOGIT, LOW_LOGIT = 0.0, -6.9  # -6.9 is a sigmoid of 0.001
FEATURES = 0.5  # each of NUM_FEATURES
NUM_FEATURES = 1024
WARM_UP_STEPS, WARM_UP_ROIS = 40, 4096  # for what a loss accumulates
NUM_DRAWS, NUM_LABEL_DRAWS = 1280, 40  # a random loss is averaged: as a negative, and as the label

LOGITS = torch.linspace(-10, 10, 33)
NEGATIVE_LOGIT, LABEL_LOGIT = -3.0, 0.0  # where the overview looks
LINEAR_BELOW = 1e-3  # the axis of gradients is logarithmic above this, and linear below, where 0 is


def build_loss(name: str, opts: Sequence = ()) -> ClassificationLoss:
    """The loss of this registered name on LVIS v1's counts; ``opts`` are config overrides, ``[KEY, VALUE, ...]``."""
    cfg = get_cfg()
    add_eql_config(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(lvis_frequencies())
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.COUNTS_FILE = str(COUNTS)
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME = name
    cfg.merge_from_list(list(opts))
    return build_cls_loss(cfg)


def lvis_frequencies() -> ClassFrequencies:
    return ClassFrequencies.from_counts_file(COUNTS)


def typical_categories(frequencies: ClassFrequencies) -> dict[str, int]:
    """Group letter -> the category of median image count among its group."""
    typical = {}
    for letter in GROUP_NAMES:
        members = torch.tensor([j for j, g in enumerate(frequencies.groups) if g == letter])
        order = frequencies.image_count[members].argsort(stable=True)
        typical[letter] = int(members[order[len(order) // 2]])
    return typical


@dataclass
class Probe:
    """Asks a loss for the gradient that one RoI of a typical batch gives to one logit.

    Args:
        loss: K categories; it is left as it is.
        frequencies: counts of the K categories.
    """

    loss: ClassificationLoss
    frequencies: ClassFrequencies

    def __post_init__(self):
        self.loss = copy.deepcopy(self.loss).train()
        self.context = self._draw_labels(NUM_CONTEXT_ROIS, seed=0)
        for seed in range(WARM_UP_STEPS if self.loss.state_dict() else 0):
            labels = self._draw_labels(WARM_UP_ROIS, seed)
            features = torch.full((WARM_UP_ROIS, NUM_FEATURES), FEATURES)
            self.loss(self._typical_logits(labels), labels, features)
        self.state = copy.deepcopy(self.loss.state_dict())
        self.random = False  # until a step draws
        self._step(self.typical_label, 0, torch.zeros(1))

    @property
    def typical_label(self) -> int:
        """The category of the median object: on LVIS a frequent one."""
        objects = self.frequencies.require_instance_count()
        order = objects.argsort(descending=True, stable=True)
        half = int((objects[order].cumsum(0) * 2 < objects.sum()).sum())
        return int(order[half])

    def pushes(self, role: str, category: int, logits: torch.Tensor) -> np.ndarray:
        """What moves the logit of ``category``, at each of ``logits``, in a RoI where it has this role (of ``ROLES``).

        R dL / dz, which lowers z, for a negative; -R dL / dz, which raises it, for the label.
        """
        labels = {
            "foreground": self.typical_label,
            "background": self.loss.num_classes,
            "label": category,
        }
        together = self.random and role != "label"  # in one batch, to save time; as labels they would count
        batches = [logits] if together else logits.split(1)
        draws = 1 if not self.random else NUM_DRAWS if together else NUM_LABEL_DRAWS
        gradients = [
            torch.stack([self._step(labels[role], category, batch, seed) for seed in range(draws)]).mean(dim=0)
            for batch in batches
        ]
        gradient = torch.cat(gradients)
        return (-gradient if role == "label" else gradient).numpy()

    def _draw_labels(self, number: int, seed: int) -> torch.Tensor:
        """Labels of a typical batch: a quarter of foreground, with objects as frequent as in the training set."""
        objects = self.frequencies.require_instance_count().double()
        with fixed_seed(seed):
            labels = objects.multinomial(number // 4, replacement=True)
        return torch.cat([labels, labels.new_full((number - len(labels),), self.loss.num_classes)])

    def _typical_logits(self, gt_classes: torch.Tensor) -> torch.Tensor:
        """Those of the middle of training: open for the label and for background, low for the rest."""
        K = self.loss.num_classes
        logits = torch.full((len(gt_classes), self.loss.num_logits), LOW_LOGIT)
        logits[:, K:] = OPEN_LOGIT
        foreground = (gt_classes < K).nonzero()[:, 0]
        logits[foreground, gt_classes[foreground]] = OPEN_LOGIT
        return logits

    def _step(self, label: int, category: int, logits, seed: int = 0) -> torch.Tensor:
        """R dL / dz of ``category`` in one RoI for each of ``logits``, within a batch of the others."""
        self.loss.load_state_dict(self.state)
        number = len(logits)
        gt_classes = torch.cat([torch.full((number,), label), self.context])
        batch = self._typical_logits(gt_classes)
        batch[:number, category] = logits
        batch.requires_grad_()
        features = torch.full((len(batch), NUM_FEATURES), FEATURES)
        with fixed_seed(seed):
            before = torch.get_rng_state()
            (gradient,) = torch.autograd.grad(self.loss(batch, gt_classes, features), batch)
            self.random |= not torch.equal(before, torch.get_rng_state())
        return len(batch) * gradient[:number, category]


def plot_loss(name: str, path, opts: Sequence = ()) -> None:
    """Draw how a loss pushes a rare, a common and a frequent category, as curves over the logit, to ``path``.

    Args:
        name: registered name of the loss.
        path: PNG to write.
        opts: config overrides for the loss.
    """
    from matplotlib.figure import Figure

    frequencies = lvis_frequencies()
    probe = Probe(build_loss(name, opts), frequencies)
    baseline = Probe(build_loss(baseline_of(probe.loss)), frequencies)
    typical = typical_categories(frequencies)
    figure = Figure(figsize=(10.5, 3.6))
    axes = figure.subplots(1, 3, sharey=True)
    for axis, (role, title) in zip(axes, ROLES.items()):
        # Thick below thin, so that curves that coincide are all seen.
        for (letter, category), width in zip(reversed(typical.items()), (5.5, 3.5, 1.5)):
            curve = probe.pushes(role, category, LOGITS)
            label = category_label(GROUP_NAMES[letter], category, frequencies)
            axis.plot(LOGITS, curve, color=GROUP_COLORS[letter], linewidth=width, label=label)
        curve = baseline.pushes(role, typical["f"], LOGITS)
        label = f"{type(baseline.loss).__name__}, any category"
        axis.plot(LOGITS, curve, "k:", linewidth=1.2, label=label)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("logit z of the category", fontsize=9)
        style(axis)
    axes[0].set_yscale("symlog", linthresh=LINEAR_BELOW, linscale=0.4)
    axes[0].set_ylabel("pushes z down:  R ∂L/∂z", fontsize=9)
    axes[2].set_ylabel("pushes z up:  −R ∂L/∂z", fontsize=9)
    draws = f"  (random: mean of {NUM_DRAWS} draws)" if probe.random else ""
    figure.suptitle(name + draws, fontsize=11, fontweight="bold", x=0.01, ha="left")
    lines = axes[0].get_legend_handles_labels()
    figure.legend(*lines, loc="lower center", ncols=4, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    save(figure, path)


def plot_overview(names: Sequence[str], path) -> None:
    """Draw all losses beside each other, the push on a rare and a frequent category at one logit, to ``path``."""
    from matplotlib.figure import Figure

    frequencies = lvis_frequencies()
    typical = typical_categories(frequencies)
    probes = sorted(
        (Probe(build_loss(name), frequencies) for name in names),
        key=lambda probe: (baseline_of(probe.loss), not is_baseline(probe.loss)),
    )
    rows = range(len(probes))
    figure = Figure(figsize=(10.5, 1.7 + 0.26 * len(probes)))
    axes = figure.subplots(1, 3, sharey=True)
    for axis, (role, title) in zip(axes, ROLES.items()):
        logit = LABEL_LOGIT if role == "label" else NEGATIVE_LOGIT
        for letter, size in (("f", 90), ("r", 26)):
            pushes = [probe.pushes(role, typical[letter], torch.tensor([logit]))[0] for probe in probes]
            label = category_label(GROUP_NAMES[letter], typical[letter], frequencies)
            axis.scatter(pushes, rows, s=size, color=GROUP_COLORS[letter], zorder=3, label=label)
        axis.set_title(title, fontsize=9)
        axis.set_xscale("symlog", linthresh=LINEAR_BELOW, linscale=0.4)
        axis.set_xlabel(f"{'−' if role == 'label' else ''}R ∂L/∂z at z = {logit:g}", fontsize=9)
        style(axis)
    axes[0].set_yticks(rows, [type(probe.loss).__name__ for probe in probes])
    for row, probe in enumerate(probes):
        axes[0].get_yticklabels()[row].set_fontweight("bold" if is_baseline(probe.loss) else "normal")
    axes[0].invert_yaxis()
    dots = axes[0].get_legend_handles_labels()
    figure.legend(*dots, loc="lower center", ncols=2, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.25 / figure.get_figheight(), 1, 1))
    save(figure, path)


def baseline_of(loss: ClassificationLoss) -> str:
    """Cross-entropy of the same kind."""
    return "SigmoidCrossEntropy" if loss.prior_prob is not None else "SoftmaxCrossEntropy"


def is_baseline(loss: ClassificationLoss) -> bool:
    return type(loss).__name__ == baseline_of(loss)


def category_label(group: str, category: int, frequencies: ClassFrequencies) -> str:
    images, objects = frequencies.image_count[category], frequencies.require_instance_count()[category]
    return f"{group} ({images} images, {objects} objects)"


def style(axis) -> None:
    axis.grid(color="0.92")
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def save(figure, path) -> None:
    """Write a PNG of 64 colours, a third of its size in full colour."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    make_folder(Path(path).parent)
    figure.set_dpi(110)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    with naming(path):
        pixels.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


@contextmanager
def fixed_seed(seed: int):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed also does what only a GPU needs, slowly
        yield
