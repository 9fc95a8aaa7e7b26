"""The figures of docs/benchmark.md, each of all results that there are."""

from pathlib import Path
from statistics import mean

import matplotlib
import numpy as np

from study.documents import Records, losses_of, mean_tail
from study.plan import EQL, KEY_LOSSES, SIGMOID, SOFTMAX, SOFTMAX_EQL, Variant, studies
from study.record import RUNS, load
from study.seeds import interval, paired_differences, values

matplotlib.use("agg")
from matplotlib import pyplot as plt

COLORS = {SOFTMAX: "#9a9a9a", SOFTMAX_EQL: "#d1495b", SIGMOID: "#5b8db8", EQL: "#1b3a5c"}
GROUPS = {"APr": ("rare", "#d1495b"), "APc": ("common", "#edae49"), "APf": ("frequent", "#30638e")}


def write_figures(results: Path, folder: Path) -> list[Path]:
    """Draw what there are results for; returns the files."""
    records = load(results / RUNS)
    folder.mkdir(parents=True, exist_ok=True)
    drawings = {"losses": draw_losses, "ablations": draw_ablations, "gradients": draw_gradients}
    written = []
    for name, draw in drawings.items():
        figure = draw(records)
        if figure:
            written.append(folder / f"{name}.png")
            figure.savefig(written[-1], dpi=110, bbox_inches="tight")
            plt.close(figure)
    return written


def tidy(axis) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25, linewidth=0.6)


def draw_losses(records: Records):
    """APr of each loss beside sigmoid cross-entropy's, with its confidence interval, under two caps and none."""
    if SIGMOID not in records:
        return None
    names = [name for name in reversed(losses_of(records)) if name != SIGMOID]
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.32 * len(names) + 1.4), sharey=True)
    marks = (("300", "o", "#1b3a5c", "at 300 detections an image"), ("25", "s", "#edae49", "at 25"))
    marks += (("fixed", "D", "#d1495b", "without a cap (fixed AP)"),)
    for axis, metric in zip(axes, ("APr", "AP")):
        for offset, (cap, marker, color, label) in zip((0.22, 0, -0.22), marks):
            for place, name in enumerate(names):
                draw_difference(axis, records, name, metric, cap, place + offset, marker, color)
            axis.plot([], [], marker, color=color, markersize=4.5, label=label)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_xlabel(f"{metric} minus that of sigmoid cross-entropy, points")
        tidy(axis)
    axes[0].set_yticks(range(len(names)), names, fontsize=9)
    axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    figure.tight_layout()
    return figure


def draw_difference(axis, records, name, metric, cap, y, marker, color) -> None:
    differences = paired_differences(values(records[name], cap, metric), values(records[SIGMOID], cap, metric))
    if differences:
        axis.plot(mean(differences), y, marker, color=color, markersize=4.5)
    if len(differences) > 1:
        axis.plot(interval(differences), (y, y), color=color, linewidth=1)


def draw_ablations(records: Records):
    """The ablations of the EQL paper: lambda by its tail, E(r), gamma."""
    if not all(name in records for name in KEY_LOSSES):
        return None
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), sharey=True)
    draw_tails(axes[0], records)
    draw_background(axes[1], records)
    draw_gammas(axes[2], records)
    axes[0].set_ylabel("AP at 300 detections an image")
    axes[0].legend(frameon=False, fontsize=9)
    for axis in axes:
        tidy(axis)
    figure.tight_layout()
    return figure


def draw_curves(axis, records: Records, points: dict[float, Variant]) -> None:
    """Mean over the seeds that all points have, and each of them as a dot, of the points that there are results for."""
    known = {x: records[v.name] for x, v in points.items() if v.name in records}
    common = set.intersection(*(set(of) for of in known.values()))
    known = {x: {seed: of[seed] for seed in sorted(common)} for x, of in known.items()}
    for metric, (label, color) in GROUPS.items():
        means = [mean(values(of, "300", metric).values()) for of in known.values()]
        axis.plot(list(known), means, color=color, label=label)
        for x, of in known.items():
            axis.plot([x] * len(of), list(values(of, "300", metric).values()), ".", color=color, alpha=0.6)


def draw_tails(axis, records: Records) -> None:
    known = [row.variant for row in studies()["tail"] if row.variant.name in records]
    ratio = {v.name: 100 * mean_tail(records[v.name])[1] for v in known}
    draw_curves(axis, records, {ratio[v.name]: v for v in sorted(known, key=lambda v: ratio[v.name])})
    axis.set_xscale("symlog", linthresh=0.5)
    axis.set_xticks([0, 1, 10, 100], ["0 (sigmoid)", "1", "10", "100"])
    axis.set_xlabel("tail ratio TR, % (lambda rises)")
    axis.set_title("EQL: how much is tail", fontsize=10)


def draw_background(axis, records: Records) -> None:
    names = ("sigmoid", "EQL", "EQL, E(r) = 1")
    variants = [row.variant for row in studies()["background"]]
    draw_curves(axis, records, dict(enumerate(variants)))
    axis.set_xticks(range(3), names)
    axis.set_title("EQL: background spares the tail, too", fontsize=10)


def draw_gammas(axis, records: Records) -> None:
    points = {}
    for row in studies()["gamma"]:
        overrides = dict(zip(row.variant.overrides[::2], row.variant.overrides[1::2]))
        default = 0.0 if row.variant.name == SOFTMAX else 0.9
        points[next((v for k, v in overrides.items() if k.endswith("GAMMA")), default)] = row.variant
    draw_curves(axis, records, dict(sorted(points.items())))
    axis.set_xlabel("gamma (0: softmax)")
    axis.set_title("softmax EQL: gamma", fontsize=10)


def draw_gradients(records: Records):
    """The ratio of positive to negative gradient of each category's classifier row, over its training images."""
    known = [name for name in KEY_LOSSES if name in records]
    if not known:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True)
    for axis, names in zip(axes, ((SIGMOID, EQL), (SOFTMAX, SOFTMAX_EQL))):
        for name in names:
            if name in known:
                draw_ratio(axis, records[name], name)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.axvline(10.5, color="black", linewidth=0.6, linestyle=":")
        axis.set(xscale="log", yscale="log", xlabel="training images of the category (left of the line: rare)")
        axis.set_xticks([1, 10, 100], ["1", "10", "100"])
        axis.set_yticks([0.1, 1], ["0.1", "1"])
        axis.legend(frameon=False, fontsize=9)
        tidy(axis)
    axes[0].set_ylabel("positive / negative gradient")
    figure.tight_layout()
    return figure


def draw_ratio(axis, of_loss: dict[int, dict], name: str) -> None:
    images = np.concatenate([r["categories"]["images"] for r in of_loss.values()])
    positive = np.concatenate([r["categories"]["positive"] for r in of_loss.values()])
    negative = np.concatenate([r["categories"]["negative"] for r in of_loss.values()])
    axis.plot(images, positive / negative, ".", color=COLORS[name], alpha=0.35, markersize=4)
    edges = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256, 501])
    place = np.digitize(images, edges)
    bins = [(images[place == b].mean(), positive[place == b].sum() / negative[place == b].sum()) for b in set(place)]
    axis.plot(*zip(*sorted(bins)), color=COLORS[name], label=name)
