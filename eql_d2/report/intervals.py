"""95 % intervals of AP, and of the differences between results files, by drawing the images anew."""

from plotly import graph_objects as go

from eql_d2.report.runs import Comparison
from eql_d2.report.style import INK, Figure, Section, looks, new_plot, shown


def intervals(comparison: Comparison, drawings: dict) -> Section:
    """
    Args:
        drawings: of :func:`eql_d2.evaluation.files.resampled`.
    """
    text = (
        f"95 % intervals by {drawings['drawings']} drawings of the images, with replacement: of AP on sets of this "
        "size, and of each file's difference to the first by the same drawings. A difference whose interval leaves "
        "out 0 is larger than the choice of images explains."
    )
    names = looks(comparison.configurations)
    figures = [_intervals(names, drawings["intervals"], "AP (%)", "AP", "")]
    if drawings["differences"]:
        title = f"Difference to {names[0].label}"
        figures.append(_intervals(names[1:], drawings["differences"], "difference of AP (points)", title, "+"))
    return Section("Intervals", text, figures)


def _intervals(names: list, of_each: list[dict], x: str, title: str, sign: str) -> Figure:
    metrics = list(of_each[0])
    plot = new_plot(x, "", height=150 + 34 * len(metrics) * len(names))
    for place, (look, rows) in enumerate(zip(names, of_each, strict=True)):
        offset = (place + 0.5) / len(names) - 0.5
        values = [rows[metric]["value"] for metric in metrics]
        plot.add_trace(
            go.Scatter(
                x=values,
                y=[index + 0.7 * offset for index in range(len(metrics))],
                mode="markers",
                marker={**look.marker, "opacity": 1},
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [rows[metric]["high"] - rows[metric]["value"] for metric in metrics],
                    "arrayminus": [rows[metric]["value"] - rows[metric]["low"] for metric in metrics],
                },
                name=shown(look.label),
                customdata=[[metric, rows[metric]["low"], rows[metric]["high"]] for metric in metrics],
                hovertemplate=(
                    f"{shown(look.label)}, %{{customdata[0]}}: %{{x:{sign}.1f}} "
                    f"[%{{customdata[1]:{sign}.1f}}, %{{customdata[2]:{sign}.1f}}]<extra></extra>"
                ),
            )
        )
    plot.update_yaxes(tickvals=list(range(len(metrics))), ticktext=metrics, autorange="reversed", showgrid=False)
    if sign:
        plot.add_vline(x=0, line={"color": INK, "dash": "dash", "width": 1})
    return Figure(title, plot, _caption(names, of_each, sign))


def _caption(names: list, of_each: list[dict], sign: str) -> str:
    if not sign:
        values = [f"{look.label} {rows['AP']['value']:.1f} %" for look, rows in zip(names, of_each, strict=True)]
        return f"AP: {', '.join(values)}."
    real = [
        f"{look.label} {metric} {row['value']:+.1f}"
        for look, rows in zip(names, of_each, strict=True)
        for metric, row in rows.items()
        if row["low"] > 0 or row["high"] < 0
    ]
    return f"Leaves out 0: {', '.join(real) or 'none'}."
