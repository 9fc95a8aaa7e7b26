"""The table of results."""

from dataclasses import dataclass
from statistics import mean

from eql_d2.evaluation.compare import mean_and_spread
from eql_d2.report.runs import Comparison

# (metric, what it is, whether more is better), in the order of the columns
METRICS = (
    ("AP", "average precision, IoU 0.5 to 0.95, mean over categories", True),
    ("AP50", "AP at IoU 0.5", True),
    ("APr", "AP of rare categories", True),
    ("APc", "AP of common categories", True),
    ("APf", "AP of frequent categories", True),
    ("AP-fixed", "AP with a limit of detections per category over the dataset instead of per image", True),
    ("APr-fixed", "the same, of rare categories", True),
    ("AP-boundary", "AP by the overlap of mask boundaries", True),
    ("ECE-all", "expected calibration error: how far scores are from the share of right detections", False),
    ("ECE-r", "the same, of rare categories", False),
    ("right-r", "share of rare objects that were found and named right", True),
    ("confused-r-f", "share of rare objects that were taken for a frequent category", False),
)


@dataclass(frozen=True)
class Column:
    metric: str
    meaning: str
    cells: list[str]
    best: int | None  # the row of the best mean, if there are several


def results_columns(comparison: Comparison) -> list[Column]:
    """A column for each metric that any configuration has: mean ± sample standard deviation, in percent."""
    columns = []
    for metric, meaning, more_is_better in METRICS:
        values = [c.metric(metric) for c in comparison.configurations]
        if not any(values):
            continue
        means = {i: mean(v) for i, v in enumerate(values) if v}
        best = (max if more_is_better else min)(means, key=means.__getitem__) if len(means) > 1 else None
        cells = [mean_and_spread(v) if v else "–" for v in values]
        columns.append(Column(metric, meaning, cells, best))
    return columns
