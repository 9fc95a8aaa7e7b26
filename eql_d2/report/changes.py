"""The categories that gained and lost most from one configuration to another."""

from dataclasses import dataclass

from plotly import graph_objects as go

from eql_d2.data.letters import GROUP_NAMES
from eql_d2.report.frequency import why_no_points
from eql_d2.report.runs import Comparison, Configuration
from eql_d2.report.style import GROUP_COLORS, INK, Figure, Section, new_plot, shown

NUM_EACH = 10  # categories that gained, and that lost
NAME_CHARACTERS = 18


@dataclass(frozen=True)
class Change:
    index: int
    before: float
    after: float

    @property
    def points(self) -> float:
        return self.after - self.before


def biggest_changes(comparison: Comparison) -> Section:
    title, reference = "Gained and lost", comparison.configurations[0]
    text = (
        f"AP of single categories, compared with the first configuration, {reference.label}{comparison.over_seeds}. "
        f"A bar to the right is a gain."
    )
    if len(comparison.configurations) < 2:
        return Section(title, "AP of single categories.", missing="This compares two configurations; there is one.")
    figures = []
    for other in comparison.configurations[1:]:
        changes = changes_between(reference, other)
        if changes:
            figures.append(_bars(comparison, reference, other, changes))
    return Section(title, text, figures, why_no_points(comparison))


def changes_between(before: Configuration, after: Configuration) -> list[Change]:
    """Of each category with AP in both, most gained first."""
    first, second = before.by_category("AP"), after.by_category("AP")
    changes = [Change(index, first[index], second[index]) for index in first if index in second]
    return sorted(changes, key=lambda change: -change.points)


def most_changed(changes: list[Change]) -> list[Change]:
    """Those that gained most and those that lost most, most gained first."""
    gained = [c for c in changes if c.points > 0][:NUM_EACH]
    lost = [c for c in changes if c.points < 0][-NUM_EACH:]
    return gained + lost


def _bars(comparison: Comparison, reference: Configuration, other: Configuration, changes: list[Change]) -> Figure:
    drawn = most_changed(changes)
    plot = new_plot("change of AP (points)", "", height=110 + 22 * max(len(drawn), 4))
    for letter, name in {**GROUP_NAMES, "": "no group"}.items():
        rows = [
            (place, change, comparison.categories[change.index])
            for place, change in enumerate(drawn)
            if comparison.categories[change.index]["group"] == letter
        ]
        if rows:
            plot.add_trace(_bars_of_group(rows, name, GROUP_COLORS.get(letter, INK), reference.label, other.label))
    names = [comparison.categories[change.index]["name"] for change in drawn]
    plot.update_yaxes(
        tickvals=list(range(len(drawn))),
        ticktext=[shown(n if len(n) <= NAME_CHARACTERS else f"{n[: NAME_CHARACTERS - 1]}…") for n in names],
        autorange="reversed",
        showgrid=False,
    )
    plot.update_xaxes(zeroline=True, zerolinecolor=INK)
    plot.update_layout(bargap=0.25)
    gained, lost = (sum(sign * c.points > 0 for c in changes) for sign in (1, -1))
    caption = f"Of {len(changes)} categories {gained} gained and {lost} lost; drawn are the {NUM_EACH} most of each."
    return Figure(f"From {reference.label} to {other.label}", plot, caption)


def _bars_of_group(rows, name: str, color: str, before: str, after: str) -> go.Bar:
    return go.Bar(
        x=[change.points for _, change, _ in rows],
        y=[place for place, _, _ in rows],
        width=0.75,
        orientation="h",
        marker={"color": color},
        name=name,
        customdata=[[shown(row["name"]), change.before, change.after, _images(row)] for _, change, row in rows],
        hovertemplate=(
            f"<b>%{{customdata[0]}}</b> {name}%{{customdata[3]}}<br>{shown(before)}: AP %{{customdata[1]:.1f}} %"
            f"<br>{shown(after)}: AP %{{customdata[2]:.1f}} %<br>change %{{x:+.1f}}<extra></extra>"
        ),
    )


def _images(row: dict) -> str:
    return "" if row["train_images"] is None else f", {row['train_images']:.0f} training images"
