"""AP against the number of training images, one point a category."""

from statistics import mean

from plotly import graph_objects as go

from eql_d2.data.letters import GROUP_NAMES
from eql_d2.report.runs import Comparison, Configuration
from eql_d2.report.style import Figure, Section, looks, new_plot, shown


def ap_by_frequency(comparison: Comparison) -> Section:
    text = (
        "Does the detector know what it has rarely seen? Each point is a category; lines join the means over "
        "categories of similar frequency."
    )
    plot, unseen = new_plot("training images of the category (log)", "AP (%)", height=460, log_x=True), set()
    plot.update_yaxes(rangemode="nonnegative")
    for configuration, look in zip(comparison.configurations, looks(comparison.configurations)):
        points, without_images = ap_points(comparison, configuration)
        unseen |= set(without_images)
        if not points:
            continue
        plot.add_trace(category_points(comparison, points, look, "AP %{y:.1f} %"))
        bins = bin_means(configuration)
        if bins:
            plot.add_trace(_trend(bins, look))
    if not plot.data:
        return Section("AP by frequency", text, missing=why_no_points(comparison))
    caption = "Rare categories, on the left, are where losses for the long tail gain or lose."
    if unseen:
        caption += f" Not drawn: {len(unseen)} categories without training images."
    return Section("AP by frequency", text, [Figure("AP against training images", plot, caption, wide=True)])


def why_no_points(comparison: Comparison) -> str:
    """Why nothing can be drawn by category."""
    if not comparison.categories:
        return (
            f"No run has inference/{comparison.dataset}/categories_{comparison.task}.csv: evaluate again with "
            f"`eql-d2 train --eval-only`."
        )
    return (
        "The evaluation knew no counts of training images (MODEL.ROI_BOX_HEAD.CLS_LOSS.COUNTS_FILE gives them; to "
        "`eql-d2 evaluate`, --frequencies)."
    )


def ap_points(comparison: Comparison, configuration: Configuration) -> tuple[dict[int, tuple], list[int]]:
    """Index -> (training images, AP), and the categories that have AP but no training image."""
    points, without_images = {}, []
    for index, ap in configuration.by_category("AP").items():
        images = comparison.categories[index]["train_images"]
        if images is None:
            continue
        if images > 0:
            points[index] = (images, ap)
        else:  # no place on a logarithmic axis
            without_images.append(index)
    return points, without_images


def bin_means(configuration: Configuration) -> list[tuple[float, float]]:
    """(geometric middle of a bin's training images, AP), from analysis_<task>.json, mean over runs."""
    bins: dict[tuple, list[float]] = {}
    for run in configuration.runs:
        for b in (run.analysis or {}).get("frequency_bins", ()):
            if b["AP"] is not None and b["max_images"] > 0:
                bins.setdefault((max(b["min_images"], 1), b["max_images"]), []).append(b["AP"])
    return [((low * high) ** 0.5, mean(ap)) for (low, high), ap in sorted(bins.items())]


def category_points(comparison: Comparison, points: dict[int, tuple], look, value: str) -> go.Scatter:
    """Each of (training images, y), by index; ``value`` says y where the pointer is, in plotly's words."""
    rows = [comparison.categories[index] for index in points]
    return go.Scatter(
        x=[images for images, _ in points.values()],
        y=[y for _, y in points.values()],
        mode="markers",
        marker=look.marker,
        cliponaxis=False,  # or of a point at 0 half is seen
        name=shown(look.label),
        legendgroup=shown(look.label),
        customdata=[[shown(row["name"]), GROUP_NAMES.get(row["group"], "")] for row in rows],
        hovertemplate=(
            f"<b>%{{customdata[0]}}</b> %{{customdata[1]}}<br>{shown(look.label)}: {value}"
            f"<br>%{{x}} training images<extra></extra>"
        ),
    )


def _trend(bins: list[tuple[float, float]], look) -> go.Scatter:
    return go.Scatter(
        x=[images for images, _ in bins],
        y=[ap for _, ap in bins],
        mode="lines",
        line={"color": look.color, "width": 3},
        legendgroup=shown(look.label),
        showlegend=False,
        hovertemplate=f"{shown(look.label)}, mean of such categories: AP %{{y:.1f}} %<extra></extra>",
    )
