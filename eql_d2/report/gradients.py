"""Positive against negative gradient of each category, over the whole training."""

from eql_d2.evaluation.run_folder import GRADIENT_BALANCE_FILE
from eql_d2.report.frequency import category_points, why_no_points
from eql_d2.report.runs import Comparison, Configuration
from eql_d2.report.style import INK, Figure, Section, looks, new_plot


def gradient_ratios(comparison: Comparison) -> Section:
    text = (
        "Why a tail is lost: each object of one category is a negative for all others, so that the classifier of a "
        "rare category is pushed down far more often than up. Summed over training: the gradient from boxes of the "
        "category, divided by that from all other boxes."
    )
    x, y = "training images of the category (log)", "positive / negative gradient (log)"
    plot, left_out = new_plot(x, y, height=460, log_x=True, log_y=True), 0
    for configuration, look in zip(comparison.configurations, looks(comparison.configurations)):
        points = ratio_points(comparison, configuration)
        left_out += len(configuration.gradient_sums()) - len(points)
        if points:
            plot.add_trace(category_points(comparison, points, look, "ratio %{y:.3g}"))
    if not plot.data:
        return Section("Gradient balance", text, missing=_why_none(comparison))
    plot.add_hline(y=1, line={"color": INK, "dash": "dash", "width": 1})
    caption = (
        "On the dashed line the two are equal; a loss for the long tail is meant to lift the points on the left "
        "towards it. Compare like with like: the gradients of a softmax add up to 0 in each box, which brings its "
        "ratios nearer to 1."
    )
    if left_out:
        caption += f" Not drawn: {left_out} points of categories that were never sampled."
    return Section("Gradient balance", text, [Figure("Gradient ratio by category", plot, caption, wide=True)])


def _why_none(comparison: Comparison) -> str:
    if not any(run.gradients for run in comparison.runs):
        return f"No run has a {GRADIENT_BALANCE_FILE}: train with GRADIENT_BALANCE_PERIOD above 0."
    return why_no_points(comparison)


def ratio_points(comparison: Comparison, configuration: Configuration) -> dict:
    """Index -> (training images, ratio), where both have a place on a logarithmic axis; gradients added over seeds."""
    points = {}
    for index, (positive, negative) in configuration.gradient_sums().items():
        images = comparison.categories.get(index, {}).get("train_images")
        if images and positive > 0 and negative > 0:
            points[index] = (images, positive / negative)
    return points
