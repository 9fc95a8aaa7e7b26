"""What becomes of the objects of each frequency group: found and named right, taken for another category, missed."""

from statistics import mean

from plotly import graph_objects as go

from eql_d2.data.letters import GROUP_NAMES
from eql_d2.report.runs import Comparison, Configuration
from eql_d2.report.style import GROUP_COLORS, Figure, Section, new_plot, shown

RIGHT_COLOR, MISSED_COLOR = "#2e7d32", "#9aa3ad"


def confusions(comparison: Comparison) -> Section:
    text = (
        "What becomes of an object: the best detection on it names it right, or as another rare, common or frequent "
        "category, or the object is missed."
    )
    figures = [f for f in (_bars(comparison, letter, name) for letter, name in GROUP_NAMES.items()) if f]
    missing = (
        f"No run has an analysis_{comparison.task}.json with frequency groups: evaluate again with "
        f"`eql-d2 train --eval-only`, where the training counts are known, or give them to `eql-d2 evaluate` by "
        f"--frequencies."
    )
    return Section("Confusion", text, figures, missing)


def _bars(comparison: Comparison, group: str, name: str) -> Figure | None:
    shares_of = {c.label: outcome_shares(c, group) for c in comparison.configurations}
    rows = {label: shares for label, shares in shares_of.items() if shares}
    if not rows:
        return None
    colors = {"right": RIGHT_COLOR, **{GROUP_NAMES[g]: GROUP_COLORS[g] for g in GROUP_NAMES}, "missed": MISSED_COLOR}
    plot = new_plot("share of the objects (%)", "", height=150 + 40 * len(rows), barmode="stack")
    plot.update_layout(legend={"traceorder": "normal"})
    for outcome, color in colors.items():
        label = outcome if outcome in ("right", "missed") else f"as {outcome}"
        plot.add_trace(
            go.Bar(
                x=[100 * shares[outcome] for shares in rows.values()],
                y=list(range(len(rows))),
                orientation="h",
                marker={"color": color},
                name=label,
                hovertemplate=f"{label}: %{{x:.1f}} %<extra></extra>",
            )
        )
    plot.update_yaxes(tickvals=list(range(len(rows))), ticktext=[shown(label) for label in rows], autorange="reversed")
    plot.update_xaxes(range=[0, 100])
    best = max(rows, key=lambda label: rows[label]["right"])
    most = f"Most {name} objects named right: {best}, {100 * rows[best]['right']:.1f} %."
    return Figure(f"Objects of {name} categories", plot, f"At IoU 0.5{comparison.over_seeds}. {most}")


def outcome_shares(configuration: Configuration, group: str) -> dict[str, float] | None:
    """{right, rare, common, frequent, missed} -> share of the group's objects, mean over runs; None without any."""
    analyses = [run.analysis["confusion"]["groups"].get(group) for run in configuration.runs if run.analysis]
    analyses = [a for a in analyses if a and a["objects"]]
    if not analyses:
        return None
    wrong = {name: mean(a["wrong_by_group"].get(letter, 0) for a in analyses) for letter, name in GROUP_NAMES.items()}
    return {"right": mean(a["right"] for a in analyses), **wrong, "missed": mean(a["missed"] for a in analyses)}
