"""How the figures of a report look: a colour and a marker for each configuration, escaped text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from plotly import graph_objects as go

from eql_d2.report.runs import Configuration

GROUP_COLORS = {"r": "#c2185b", "c": "#b26a00", "f": "#1f6fb4"}
GROUP_DASHES = {"r": "solid", "c": "dash", "f": "dot"}
# Of Okabe and Ito, told apart by the colour-blind too; yellow is left out, which white drowns.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#b4589a", "#000000", "#a06a00", "#3a9bd1")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x", "star")
INK, GRID = "#1c2430", "#dfe3e8"
HEIGHT = 380  # pixels
MAX_DECADES_OF_THREE_TICKS, MAX_TICKS = 3.5, 8  # of a logarithmic axis, which a phone has room for


@dataclass(frozen=True)
class Figure:
    """One figure of a section: a plot, its title, and what is seen in it."""

    title: str
    plot: go.Figure
    caption: str
    wide: bool = False  # takes the whole width of a desktop


@dataclass(frozen=True)
class Section:
    """A heading with figures; without any, `missing` says why."""

    title: str
    text: str
    figures: list[Figure] = field(default_factory=list)
    missing: str | None = None


@dataclass(frozen=True)
class Look:
    """How a configuration is drawn in all figures."""

    label: str
    color: str
    symbol: str

    @property
    def marker(self) -> dict:
        return {"color": self.color, "symbol": self.symbol, "size": 7, "opacity": 0.65}


def looks(configurations: Sequence[Configuration]) -> list[Look]:
    """One for each; colours and markers repeat after seven."""
    return [Look(c.label, COLORS[i % len(COLORS)], SYMBOLS[i % len(SYMBOLS)]) for i, c in enumerate(configurations)]


def shown(text: str) -> str:
    """Text of a run or dataset as plotly draws it: plotly reads its labels as HTML."""
    return escape(text)


def new_plot(x: str, y: str, height: int = HEIGHT, log_x: bool = False, log_y: bool = False, **layout) -> go.Figure:
    """An empty plot with titled axes; units belong to the titles."""
    axis = {
        "gridcolor": GRID,
        "linecolor": INK,
        "showline": True,
        "zeroline": False,
        "automargin": True,
        "ticks": "outside",
    }
    plot = go.Figure()
    plot.update_layout(
        template="none",
        height=height,
        margin={"l": 8, "r": 22, "t": 12, "b": 8},
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.01, "xanchor": "left", "x": 0},
        showlegend=True,  # also of a single configuration
        hoverlabel={"bgcolor": "white", "font": {"color": INK}, "align": "left"},
        xaxis={**axis, "title": {"text": x}, "type": "log" if log_x else "linear"},
        yaxis={**axis, "title": {"text": y}, "type": "log" if log_y else "linear"},
        **layout,
    )
    return plot


def set_log_ticks(plot: go.Figure) -> None:
    """Ticks of the logarithmic axes, once the data is there: 1, 2 and 5 of each decade, or fewer if there are many."""
    for name in ("x", "y"):
        axis = plot.layout[f"{name}axis"]
        values = [v for trace in plot.data for v in trace[name] if v > 0] if axis.type == "log" else []
        if values:
            decades = math.log10(max(values) / min(values))
            few = decades <= MAX_DECADES_OF_THREE_TICKS
            axis.update(dtick="D2" if few else math.ceil(decades / MAX_TICKS), tickformat="~g", minexponent=9)
