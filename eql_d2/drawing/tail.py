"""The long tail of a dataset: its category counts, and what each rule of what the tail is selects."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tabulate import tabulate

from eql_d2.data import ClassFrequencies, FrequenciesNotFound, TailRule, tail_ratio
from eql_d2.data.letters import GROUP_NAMES
from eql_d2.data.whole_files import make_folder, written_whole
from eql_d2.drawing.panels import GROUP_COLORS

INK = "#1c2430"
NUM_LAMBDAS = 200  # points of the curve of TR


def default_rules(frequencies: ClassFrequencies) -> list[TailRule]:
    """The rules in use: LVIS's groups, image counts, and the lambda that is the same as 100 images."""
    rules = [TailRule(groups="r"), TailRule(groups="rc"), TailRule(max_image_count=10), TailRule(max_image_count=100)]
    if frequencies.num_images is None or frequencies.num_images <= 100:
        return rules
    return [*rules, TailRule(lambda_=float(f"{100.5 / frequencies.num_images:.4g}"))]


def describe_data(frequencies: ClassFrequencies, rules: Sequence[TailRule]) -> str:
    """A table with a row for each rule: the categories that it takes for tail, and the paper's tail ratio (Eq. 5)."""
    rows = []
    for rule in rules:
        try:
            tail = rule.mask(frequencies)
        except FrequenciesNotFound as error:
            rows.append({"tail rule": str(rule), "lambda": str(error)})
            continue
        letters = [g for g, is_tail in zip(frequencies.groups, tail.tolist()) if is_tail]
        rows.append(
            {
                "tail rule": str(rule),
                "lambda": _lambda_of(frequencies, tail),
                "tail categories": f"{len(letters)} of {len(frequencies)}",
                **{name: str(letters.count(letter)) for letter, name in GROUP_NAMES.items()},
                "TR": f"{tail_ratio(frequencies, tail):.4f}",
            }
        )
    counts = frequencies.image_count.numpy()
    heading = (
        f"{frequencies.source}: {len(frequencies)} categories, {_number(frequencies.num_images)} annotated images; "
        f"images of a category: {counts.min():,} to {counts.max():,}, median {np.median(counts):,.0f}"
    )
    return f"{heading}\n\n{tabulate(rows, headers='keys', tablefmt='pipe', disable_numparse=True)}"


def _lambda_of(frequencies: ClassFrequencies, tail) -> str:
    """The smallest lambda, rounded up, that selects at least this tail; "" if it is empty or the images are unknown."""
    if frequencies.num_images is None or not tail.any():
        return ""
    return f"> {float(frequencies.frequency[tail].max()):.3g}"


def _number(n) -> str:
    return "an unknown number of" if n is None else f"{n:,}"


def plot_data(frequencies: ClassFrequencies, rules: Sequence[TailRule], path) -> None:
    """Draw sorted counts beside TR(lambda), as in Fig. 2 and Eq. 5 of the EQL paper, to a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_counts(left, frequencies)
    if frequencies.num_images is None:
        right.set_axis_off()
        right.text(0.5, 0.5, "lambda needs the number of annotated images,\nwhich is not known", ha="center")
    else:
        _draw_tail_ratio(right, frequencies, rules)
    make_folder(Path(path).parent)
    with written_whole(path, "wb") as file:
        figure.savefig(file, format="png", dpi=110)


def _draw_counts(axis, frequencies: ClassFrequencies) -> None:
    counts = frequencies.image_count.numpy()
    order = np.argsort(-counts, kind="stable")
    letters = np.array(list(frequencies.groups))[order]
    for letter, name in reversed(GROUP_NAMES.items()):
        places = np.flatnonzero(letters == letter)
        if len(places):
            label = f"{name}: {len(places)} categories"
            # A category without an image is drawn below 1, where it can be seen.
            heights = np.maximum(counts[order][places], 0.7)
            axis.bar(places, heights, width=1.0, color=GROUP_COLORS[letter], label=label)
    axis.set_yscale("log")
    axis.set_ylim(bottom=0.5)
    axis.set_xlabel("categories, most frequent first")
    axis.set_ylabel("training images (log)")
    axis.set_title(f"{counts.min():,} to {counts.max():,} training images a category")
    axis.legend(frameon=False)


def _draw_tail_ratio(axis, frequencies: ClassFrequencies, rules: Sequence[TailRule]) -> None:
    shares = frequencies.frequency.numpy()
    lowest = max(shares[shares > 0].min(), 1e-7)
    lambdas = np.geomspace(lowest, min(1.0, 2 * shares.max()), NUM_LAMBDAS)
    masks = [frequencies.frequency < value for value in lambdas]
    ratios = [tail_ratio(frequencies, mask) for mask in masks]
    categories = [float(mask.double().mean()) for mask in masks]
    axis.plot(lambdas, ratios, color=INK, label="TR: of the image counts")
    axis.plot(lambdas, categories, color=INK, linestyle="--", label="of the categories")
    for place, rule in enumerate(rules):
        if rule.kind == "lambda":
            axis.axvline(rule.value, color=f"C{place % 10}", label=f"lambda {rule.value:g}")
    axis.set_xscale("log")
    axis.set_xlabel("lambda: categories in a smaller share of the images are tail (log)")
    axis.set_ylabel("share that is tail")
    axis.set_title("What lambda selects")
    axis.legend(frameon=False)
