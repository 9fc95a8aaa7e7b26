"""The tables and the figure of docs/benchmark_1203.md, and those in the README, of all runs that there are."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import matplotlib

from study.calibrations import calibration_table
from study.documents import fill, markdown
from study.record import RUNS, load
from study.scale.correlation import Agreement, agreement, gains
from study.scale.plan import CHANGES, PUBLISHED, SEEDS, SOFTMAX, TUNING_SEED, published_gain
from study.scale.runs import CAPS
from study.seeds import spread, values

matplotlib.use("agg")
from matplotlib import pyplot as plt

DOCUMENTS = "README.md", "docs/benchmark_1203.md"
FIGURE = "figures/benchmark/lvis_scale.png"
NO_RUNS = "*Too few runs are finished.*"
METRICS = ("AP", "APr", "APc", "APf")
SUMMARY = (SOFTMAX, "sigmoid", "EQL", "RFS", "EQLv2", "Seesaw")  # the README's rows
# What to do first, second, third: the step, its method, and what it costs beside a training with softmax.
STEPS = (
    ("nothing", SOFTMAX, ""),
    ("**1.** repeat factor sampling", "RFS", "1.77 times the iterations"),
    ("**2.** correct the scores of that by NorCal", "NorCal-RFS", "no training"),
    ("**3.** or train with sampling and a loss for the tail, ECM", "ECM-RFS", "1.77 times the iterations"),
    ("or with sampling and a cosine classifier", "cosine-RFS", "1.77 times the iterations"),
    ("or with sampling and EQL v2", "EQLv2-RFS", "1.77 times the iterations"),
    ("without a longer training: Seesaw", "Seesaw", ""),
    ("without a longer training: EQL v2", "EQLv2", ""),
    ("softmax is trained: BAGS in a second stage", "BAGS", "its classifier once more"),
    ("softmax is trained: cRT in a second stage", "cRT", "its classifier once more"),
    ("softmax with sampling is trained: cRT in a second stage", "cRT-on-RFS", "its classifier once more"),
)
# Methods of the 90-category benchmark (docs/benchmark.md) with published figures.
SMALL_NAMES = {
    SOFTMAX: "SoftmaxCrossEntropy",
    "EQL": "EqualizationLoss",
    "RFS": "SoftmaxCrossEntropy-RFS",
    "EQLv2": "EqualizationLossV2",
    "cRT": "cRT-on-SoftmaxCrossEntropy",
    "BAGS": "BAGS-on-SoftmaxCrossEntropy",
    "LWS": "LWS-on-SoftmaxCrossEntropy",
    "sigmoid": "SigmoidCrossEntropy",
    "Seesaw": "SeesawLoss",
}
Records = dict[str, dict[int, dict]]  # method -> seed -> line


def write_documents(results: Path, root: Path) -> list[Path]:
    """Fill the places of the documents below ``root`` anew, and draw the figure; returns the files."""
    records, docs = load(results), root / "docs"
    paths = fill([root / name for name in DOCUMENTS], lambda name: TABLES[name](records, docs) or NO_RUNS)
    drawn = draw(untouched(records))
    if drawn is None:
        return paths
    drawn.savefig(docs / FIGURE, dpi=110, bbox_inches="tight")
    plt.close(drawn)
    return [*paths, docs / FIGURE]


def untouched(records: Records) -> Records:
    """Without the seed that was looked at while the set was made."""
    kept = {name: {s: r for s, r in of.items() if s != TUNING_SEED} for name, of in records.items()}
    return {name: of for name, of in kept.items() if of}


def of_metric(records: Records, metric: str, cap: int = CAPS[0]) -> dict[str, dict[int, float]]:
    return {name: values(of, str(cap), metric) for name, of in records.items()}


def spreads(of_seeds: dict[int, dict]) -> dict[str, str]:
    """The cells of a method: metric -> mean and deviation over its seeds."""
    return {metric: spread(values(of_seeds, str(CAPS[0]), metric)) for metric in METRICS}


# ---- the tables ----


def methods_table(records: Records, _docs: Path) -> str:
    """Every method on the untouched seeds, the best first, beside what is published."""
    endings = tuple(change.ending for change in CHANGES)
    records = {name: of for name, of in untouched(records).items() if not name.endswith(endings)}
    rows = []
    for name in sorted(records, key=lambda n: -mean(values(records[n], str(CAPS[0]), "AP").values())):
        row = {"method": name, "seeds": len(records[name])}
        row |= spreads(records[name])
        row |= {f"{m} − softmax's": signed(gain_of(records, name, m)) for m in ("AP", "APr")}
        row |= {f"published, {m}": signed(published_or_none(name, m)) for m in ("AP", "APr")}
        rows.append(row | {"half": half(name)})
    return markdown(rows)


def steps_table(records: Records, _docs: Path) -> str:
    """What one would do about the tail, in order, and what it gave."""
    records = untouched(records)
    rows = []
    for step, name, cost in STEPS:
        if name in records:
            rows.append({"step": step, **spreads(records[name]), "costs": cost, "seeds": len(records[name])})
    return markdown(rows)


def summary_table(records: Records, docs: Path) -> str:
    """What the README shows: how well the order of methods is the published one, and six of them."""
    rows = methods_table({name: records[name] for name in SUMMARY if name in records}, docs)
    return f"{prediction(records)}\n\n{rows}"


def prediction(records: Records) -> str:
    """Of APr and AP, in one line; empty before there is an order."""
    of = {metric: of_metric(untouched(records), metric) for metric in ("APr", "AP")}
    found = {metric: agreement(figures, metric) for metric, figures in of.items()}
    return "; ".join(
        f"**{metric}: Spearman {a.spearman:.2f}** [{a.interval[0]:.2f}, {a.interval[1]:.2f}], "
        f"{a.right_pairs} of {a.pairs} pairs in order ({len(a.methods)} methods, {len(a.seeds)} seeds)"
        for metric, a in found.items()
        if a is not None
    )


def gain_of(records: Records, name: str, metric: str) -> float | None:
    """Over the seeds that softmax has, too."""
    common = records[name].keys() & records.get(SOFTMAX, {}).keys()
    of = of_metric({key: records[key] for key in (name, SOFTMAX) if key in records}, metric)
    return gains(of, common)[name] if common else None


def published_or_none(name: str, metric: str) -> float | None:
    return published_gain(name, metric) if name in PUBLISHED else None


def half(name: str) -> str:
    if name not in PUBLISHED:
        return ""
    return "tuning" if PUBLISHED[name].tuned else "held out"


def signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}"


def correlation_table(records: Records, _docs: Path) -> str:
    """Agreement of both halves and all, on the untouched seeds and on the tuned-on one."""
    rows = []
    untouched_label = f"seeds {', '.join(map(str, SEEDS))}"
    for label, kept in ((untouched_label, untouched(records)), (f"seed {TUNING_SEED}", tuning(records))):
        for cap in CAPS:
            for metric in ("AP", "APr"):
                rows += agreement_rows({"data": label, "detections": cap}, of_metric(kept, metric, cap), metric)
    return markdown(rows)


def tuning(records: Records) -> Records:
    return {name: {TUNING_SEED: of[TUNING_SEED]} for name, of in records.items() if TUNING_SEED in of}


def agreement_rows(cells: dict, of: dict, metric: str) -> list[dict]:
    halves = {
        "all": list(PUBLISHED),
        "tuning": [name for name, figures in PUBLISHED.items() if figures.tuned],
        "held out": [name for name, figures in PUBLISHED.items() if not figures.tuned],
    }
    found = {name: agreement(of, metric, chosen) for name, chosen in halves.items()}
    return [cells | {"metric": metric, "methods": name} | shown(a) for name, a in found.items() if a is not None]


def shown(a: Agreement) -> dict[str, str]:
    return {
        "number": str(len(a.methods)),
        "seeds": str(len(a.seeds)),
        "Spearman [95 %]": f"{a.spearman:.2f} [{a.interval[0]:.2f}, {a.interval[1]:.2f}]",
        "Kendall": f"{a.kendall:.2f}",
        "pairs in order": f"{a.right_pairs} of {a.pairs}",
    }


def other_sets_table(records: Records, docs: Path) -> str:
    """Cheaper sets, each beside the 1,203 categories on the methods that both have."""
    ours = {metric: of_metric(untouched(records), metric) for metric in ("AP", "APr")}
    small = load(docs / "benchmark" / RUNS)
    small = {name: small[theirs] for name, theirs in SMALL_NAMES.items() if theirs in small}
    digits = json.loads((docs / "benchmark" / "digits.json").read_text())
    others = {
        "90 categories": {metric: of_metric(small, metric) for metric in ours},
        "long-tailed digits, accuracy": {metric: of_digits(digits, i) for i, metric in enumerate(ours)},
    }
    for change in CHANGES:
        changed = {n: records[n + change.ending] for n in change.only if n + change.ending in records}
        others[f"1,203 categories, {change.label}"] = {m: of_metric(untouched(changed), m) for m in ours}
    rows = []
    for label, of_set in others.items():
        for metric, theirs in of_set.items():
            for name, of in ((label, theirs), ("1,203 categories, the same methods", ours[metric])):
                found = agreement(of, metric, set(theirs) & set(ours[metric]) or set(theirs))
                rows += [{"set": name, "metric": metric} | shown(found)] if found else []
    return markdown(rows)


def of_digits(accuracies: dict[str, list], column: int) -> dict[str, dict[int, float]]:
    """Method -> seed -> percent, of the losses with published figures."""
    known = {name: accuracies[loss] for name, loss in SMALL_NAMES.items() if loss in accuracies}
    return {name: {seed: 100 * pair[column] for seed, pair in enumerate(pairs)} for name, pairs in known.items()}


def figure_link(records: Records, _docs: Path) -> str:
    return f"![Gains here and published]({FIGURE})" if SOFTMAX in untouched(records) else ""


def published_table(_records: Records, _docs: Path) -> str:
    rows = []
    for name, f in PUBLISHED.items():
        row = {"method": name, "AP": f"{f.AP}", "APr": dash(f.APr), "minus": f.baseline or ""}
        row |= {"its AP": f"{f.baseline_AP}", "its APr": dash(f.baseline_APr), "source": f.source, "half": half(name)}
        rows.append(row | {f"{m} − softmax's": signed(published_gain(name, m)) for m in ("AP", "APr")})
    return markdown(rows)


def dash(value: float | None) -> str:
    return "-" if value is None else f"{value}"


def cost_table(records: Records, _docs: Path) -> str:
    rows = []
    for name, of in records.items():
        whole = [record for record in of.values() if not record["resumed"]]
        if whole:
            row = {"method": name, "runs": len(whole), "CPU s": f"{mean(r['cpu_seconds'] for r in whole):.0f}"}
            rows.append(row | {"GB": f"{max(r['peak_GB'] for r in whole):.1f}"})
    return markdown(rows)


TABLES: dict[str, Callable[[Records, Path], str]] = {
    "summary": summary_table,
    "methods": methods_table,
    "steps": steps_table,
    "correlation": correlation_table,
    "figure": figure_link,
    "other-sets": other_sets_table,
    "published": published_table,
    "cost": cost_table,
    "calibration": lambda _records, docs: calibration_table(docs / "benchmark_1203"),
}


def draw(records: Records):
    """Our gains over softmax against the published ones; None without any."""
    if SOFTMAX not in records:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6))
    for axis, metric in zip(axes, ("AP", "APr"), strict=True):
        for name in PUBLISHED:
            theirs = published_gain(name, metric)
            ours = gain_of(records, name, metric) if name in records else None
            if ours is not None and theirs is not None:
                axis.plot(theirs, ours, "o", color="#1b3a5c" if PUBLISHED[name].tuned else "#d1495b", markersize=5)
                axis.annotate(name, (theirs, ours), xytext=(4, 3), textcoords="offset points", fontsize=8)
        found = agreement(of_metric(records, metric), metric)
        axis.set_xlabel(f"published {metric} minus softmax's, LVIS v1")
        axis.set_title("" if found is None else f"Spearman {found.spearman:.2f}", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, linewidth=0.6)
    axes[0].set_ylabel("here minus softmax's, 1,203 categories")
    for label, color in (("tuned on", "#1b3a5c"), ("held out", "#d1495b")):
        axes[0].plot([], [], "o", color=color, label=label)
    axes[0].legend(frameon=False, fontsize=9)
    figure.tight_layout()
    return figure
