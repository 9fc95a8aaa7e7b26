"""A table of finished runs: one row a configuration, mean and spread over its seeds."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from tabulate import tabulate

from eql_d2.errors import InputError
from eql_d2.evaluation.run_folder import (
    configuration_key,
    datasets_tested,
    last_scores,
    read_lines,
    read_run_config,
    what_is_unfinished,
)

METRICS = ("AP", "APr", "APc", "APf")


def compare_runs(
    folders: Sequence[Path], task: str = "bbox", dataset: str | None = None, unfinished: bool = False
) -> str:
    """Markdown table of AP, APr, APc and APf in percent, mean ± sample standard deviation over seeds.

    Runs that were not evaluated at their end are left out, and named below the table. A cell is empty where no run has
    the metric: COCO has no APr, and a group without a category has no AP.

    Args:
        folders: output folders of `eql-d2 train`. Runs whose `config.yaml` differ only in the seed are
            one row, named by its first folder.
        task: "bbox" or "segm".
        dataset: which test set; None is the only one.
        unfinished: whether runs that were not evaluated at their end count, too.

    Raises:
        InputError: no run is finished; a folder without `config.yaml`, or without results of the task on the
            dataset; or one with several test sets, and none is chosen.
    """
    groups: dict[str, list[tuple[str, dict]]] = {}  # of one configuration the names and scores of its runs
    left_out = []
    for folder in map(Path, folders):
        config, lines = read_run_config(folder), read_lines(folder / "metrics.json")
        reason = what_is_unfinished(config, lines)
        if reason and not unfinished:
            left_out.append(f"{folder} is left out: {reason}")
        else:
            scores = _scores(folder, config, lines, task, dataset)
            groups.setdefault(configuration_key(config), []).append((folder.name, scores))
    if not groups:
        raise InputError("; ".join(left_out) or "no run is named")
    rows = []
    for group in groups.values():
        row = {"run": group[0][0], "seeds": len(group)}
        for metric in METRICS:
            row[metric] = mean_and_spread([scores[metric] for _, scores in group if metric in scores])
        rows.append(row)
    return "\n".join([tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".1f"), *left_out])


def _scores(folder: Path, config: dict, lines: list[dict], task: str, dataset: str | None) -> dict[str, float]:
    """Metrics of the last evaluation, those that are numbers."""
    tested = datasets_tested(config)
    if dataset is None and len(tested) > 1:
        raise InputError(f"{folder} was evaluated on {', '.join(tested)}: choose one by --dataset")
    if dataset is not None and tested and dataset not in tested:
        raise InputError(f"{folder} was not evaluated on {dataset}, but on {', '.join(tested)}")
    scores = last_scores(lines, task, dataset or (tested[0] if tested else ""))
    if not scores:
        raise InputError(f"{folder / 'metrics.json'} has no {task} results: was the run evaluated to its end?")
    return {name: value for name, value in scores.items() if math.isfinite(value)}


def mean_and_spread(values: list[float]) -> str:
    """`mean ± sample standard deviation` with one decimal; of a single value no spread, of none an empty string."""
    if not values:
        return ""
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"
