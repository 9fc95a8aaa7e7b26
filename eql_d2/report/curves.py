"""Training curves: the loss, and what it does to each frequency group."""

from collections.abc import Sequence

from plotly import graph_objects as go

from eql_d2.data.letters import GROUP_NAMES
from eql_d2.report.runs import Comparison
from eql_d2.report.style import GROUP_DASHES, Figure, Section, looks, new_plot, shown

# (name in EventStorage, title, y axis, whether it is logarithmic, caption)
BY_GROUP = (
    (
        "gradient_ratio",
        "Gradient ratio during training",
        "positive / negative gradient",
        True,
        "Below 1 the classifiers of a group are pushed down more than up. A loss for the tail is meant to lift the "
        "solid line (rare) towards the dotted one (frequent).",
    ),
    (
        "score",
        "Score of the right category",
        "mean score (0 to 1)",
        False,
        "How sure the classifier is of the label of sampled boxes on objects. Where the solid line stays at 0, rare "
        "objects are not recognised.",
    ),
    (
        "cost",
        "Loss of the boxes on objects",
        "classification loss",
        True,
        "The loss of boxes on rare, common and frequent objects alone. Losses of different kinds differ in scale: "
        "compare the groups of one.",
    ),
    (
        "weight_norm",
        "Norm of the classifier's weights",
        "L2 norm, mean over categories",
        False,
        "A detector of long-tailed data usually grows larger weights, and so larger scores, for frequent categories.",
    ),
    (
        "class_weight",
        "Learned class weights",
        "weight, mean over categories",
        True,
        "What META_REWEIGHT has learned. The geometric mean over all categories and background is 1.",
    ),
)


def training_curves(comparison: Comparison) -> Section:
    figures = [f for f in (_losses(comparison), _scores(comparison)) if f]
    for name, title, y, log_y, caption in BY_GROUP:
        names = [f"balance/{name}_{group}" for group in GROUP_NAMES.values()]
        plot = _lines(comparison, names, y, list(GROUP_DASHES.values()), list(GROUP_NAMES.values()), log_y=log_y)
        if plot:
            figures.append(Figure(title, plot, caption))
    text = "Mean over the seeds of a configuration."
    if len(figures) > 1:
        text += " Solid lines are rare, dashed common, dotted frequent categories."
    without = [str(run.folder) for run in comparison.runs if not run.series("balance/gradient_ratio_frequent")]
    if without and figures:
        text += f" Without curves by group, which GRADIENT_BALANCE_PERIOD logs: {', '.join(without)}."
    return Section("Training", text, figures, "No run has a metrics.json with training losses.")


def _losses(comparison: Comparison):
    plot = _lines(comparison, ["loss_cls"], "classification loss", ["solid"], [""], log_y=True)
    caption = "The loss that is trained on, over all sampled boxes. Losses of different kinds differ in scale."
    return Figure("Classification loss", plot, caption) if plot else None


def _scores(comparison: Comparison):
    """AP over training, for runs that evaluate as they go (TEST.EVAL_PERIOD)."""
    name = f"{comparison.task}/AP"
    if max((len(run.series(name)) for run in comparison.runs), default=0) < 2:
        return None
    plot = _lines(comparison, [name], "AP (%)", ["solid"], [""])
    return Figure("AP during training", plot, "Each evaluation of TEST.EVAL_PERIOD.")


def _lines(comparison: Comparison, names: Sequence[str], y: str, dashes: list[str], groups: list[str], log_y=False):
    plot = new_plot("iteration", y, log_y=log_y)
    for configuration, look in zip(comparison.configurations, looks(comparison.configurations)):
        drawn = 0
        for name, dash, group in zip(names, dashes, groups):
            curve = configuration.curve(name)
            if not curve:
                continue
            label = shown(f"{look.label}, {group}" if group else look.label)
            plot.add_trace(
                go.Scatter(
                    x=list(curve),
                    y=list(curve.values()),
                    mode="lines+markers",
                    marker={"size": 4, "color": look.color},
                    line={"color": look.color, "dash": dash, "width": 2},
                    name=shown(look.label),
                    legendgroup=shown(look.label),
                    showlegend=drawn == 0,
                    hovertemplate=f"{label}<br>iteration %{{x}}: %{{y:.3g}}<extra></extra>",
                )
            )
            drawn += 1
    return plot if plot.data else None
