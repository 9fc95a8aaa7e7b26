"""Reliability diagrams: whether a score of 0.3 means that three in ten such detections are right."""

import math

from plotly import graph_objects as go

from eql_d2.data.letters import GROUP_NAMES
from eql_d2.evaluation.compare import mean_and_spread
from eql_d2.report.runs import Comparison, Configuration
from eql_d2.report.style import INK, Figure, Section, looks, new_plot, shown


def score_calibration(comparison: Comparison) -> Section:
    text = (
        "What a score means: on the dashed line a detection of score 0.3 is right three times in ten. Above it scores "
        "are too low, as they often are for rare categories; below it, too high. Larger marks: more detections. "
        "Detections that nobody verified do not count, which flatters rare categories in LVIS: compare configurations."
    )
    names = {"all": "all categories", **{letter: f"{name} categories" for letter, name in GROUP_NAMES.items()}}
    figures = [f for f in (_reliability(comparison, g, name) for g, name in names.items()) if f]
    missing = (
        f"No run has inference/{comparison.dataset}/analysis_{comparison.task}.json: evaluate again with "
        f"`eql-d2 train --eval-only`."
    )
    return Section("Score calibration", text, figures, missing)


def _reliability(comparison: Comparison, group: str, name: str):
    plot = new_plot("mean score of the detections", "share that is right")
    errors = []
    for configuration, look in zip(comparison.configurations, looks(comparison.configurations)):
        bins = reliability_bins(configuration, group)
        if not bins:
            continue
        plot.add_trace(
            go.Scatter(
                x=[score for score, _, _ in bins],
                y=[precision for _, precision, _ in bins],
                mode="lines+markers",
                line={"color": look.color, "width": 2},
                marker={
                    "symbol": look.symbol,
                    "color": look.color,
                    "size": [5 + 2 * math.log10(detections) for _, _, detections in bins],
                },
                name=shown(look.label),
                customdata=[detections for _, _, detections in bins],
                hovertemplate=(
                    f"{shown(look.label)}<br>score %{{x:.2f}}, right: %{{y:.2f}}"
                    f"<br>%{{customdata}} detections<extra></extra>"
                ),
            )
        )
        of_runs = calibration_errors(configuration, group)
        error = f"{mean_and_spread(of_runs)} %" if of_runs else "none (no detection scores high enough to count)"
        errors.append(f"{look.label} {error}")
    if not errors:
        return None
    plot.add_shape(type="line", x0=0, y0=0, x1=1, y1=1, line={"color": INK, "dash": "dash", "width": 1}, layer="below")
    plot.update_xaxes(range=[-0.02, 1.02], dtick=0.2)
    plot.update_yaxes(range=[-0.02, 1.02], dtick=0.2)
    return Figure(f"{name[0].upper()}{name[1:]}", plot, f"Expected calibration error: {'; '.join(errors)}.")


def _of_group(configuration: Configuration, group: str) -> list[dict]:
    analyses = [run.analysis["calibration"]["groups"] for run in configuration.runs if run.analysis]
    return [groups[group] for groups in analyses if group in groups]


def calibration_errors(configuration: Configuration, group: str) -> list[float]:
    """Percent, of each run."""
    return [100 * g["ece"] for g in _of_group(configuration, group) if g["ece"] is not None]


def reliability_bins(configuration: Configuration, group: str) -> list[tuple[float, float, int]]:
    """(mean score, share of right detections, detections) of the bins with any, over the detections of all runs."""
    bins: dict[float, list[dict]] = {}
    for of_run in _of_group(configuration, group):
        for b in of_run["bins"]:
            if b["detections"]:
                bins.setdefault(b["low"], []).append(b)
    merged = []
    for _, parts in sorted(bins.items()):
        n = sum(b["detections"] for b in parts)
        score, precision = (sum(b[key] * b["detections"] for b in parts) / n for key in ("score", "precision"))
        merged.append((score, precision, n))
    return merged
