"""Results files of any detector, evaluated, as what a report compares."""

import io
from collections.abc import Sequence
from pathlib import Path

from eql_d2.evaluation.files import Evaluated
from eql_d2.evaluation.run_folder import Run, parse_categories
from eql_d2.report.runs import Comparison, Configuration


def comparison_of(names: Sequence[str], evaluated: Sequence[Evaluated]) -> Comparison:
    """One configuration a file.

    Args:
        names: what the files are called.
        evaluated: on one dataset.
    """
    configurations = [Configuration(name, [_run(each)]) for name, each in zip(names, evaluated, strict=True)]
    first = evaluated[0]
    return Comparison(first.matching.iou_type, first.dataset.path, configurations, trained=False)


def _run(evaluated: Evaluated) -> Run:
    table = io.StringIO()
    evaluated.analysis.write_categories(table)
    return Run(
        folder=Path(evaluated.path),
        config={},
        dataset=evaluated.dataset.path,
        metrics=evaluated.metrics,
        curves={},
        categories=parse_categories(table.getvalue()),
        analysis=evaluated.analysis.analysis(evaluated.metrics),
        gradients=None,
    )
