"""Runs side by side: which are repetitions of one another, and what is the mean of several."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from eql_d2.errors import InputError
from eql_d2.evaluation.run_folder import NOT_PART_OF_A_CONFIGURATION, Run, configuration_key, flatten, read_run


@dataclass(frozen=True)
class Configuration:
    """Runs whose configs differ only in the seed."""

    label: str
    runs: list[Run]

    def metric(self, name: str) -> list[float]:
        """Values of the runs that have one."""
        values = (run.metrics.get(name) for run in self.runs)
        return [v for v in values if v is not None and math.isfinite(v)]

    def by_category(self, column: str) -> dict[int, float]:
        """Index -> mean over the runs that have a value."""
        values: dict[int, list[float]] = {}
        for run in self.runs:
            for row in run.categories:
                if row.get(column) is not None:
                    values.setdefault(int(row["index"]), []).append(row[column])
        return {index: mean(v) for index, v in sorted(values.items())}

    def curve(self, name: str) -> dict[int, float]:
        """Iteration -> mean over the runs that have a value there."""
        values: dict[int, list[float]] = {}
        for run in self.runs:
            for iteration, value in run.series(name).items():
                values.setdefault(iteration, []).append(value)
        return {iteration: mean(v) for iteration, v in sorted(values.items())}

    def gradient_sums(self) -> dict[int, tuple[float, float]]:
        """Index -> (positive, negative), added over the runs that have them."""
        with_sums = [run.gradients for run in self.runs if run.gradients]
        return {
            index: (sum(p for p, _ in pairs), sum(n for _, n in pairs)) for index, pairs in enumerate(zip(*with_sums))
        }


@dataclass(frozen=True)
class Comparison:
    """All that a report shows.

    Args:
        categories: index -> row with at least `index`, `name`, `group` and `train_images`, of any run that has them.
        skipped: folder -> why it is not reported.
        trained: whether these are runs of training, not results files of any detector.
    """

    task: str
    dataset: str
    configurations: list[Configuration]
    skipped: dict[str, str] = field(default_factory=dict)
    trained: bool = True

    @property
    def categories(self) -> dict[int, dict]:
        for run in self.runs:
            if run.categories:
                return {int(row["index"]): row for row in run.categories}
        return {}

    @property
    def runs(self) -> list[Run]:
        return [run for configuration in self.configurations for run in configuration.runs]

    @property
    def over_seeds(self) -> str:
        """Of what the numbers are means, as the end of a sentence."""
        return "; mean over seeds" if any(len(c.runs) > 1 for c in self.configurations) else ""


def read_runs(
    folders: Sequence[str], task: str = "bbox", dataset: str | None = None, progress=iter, unfinished: bool = False
) -> Comparison:
    """Read the runs that can be read.

    Args:
        folders: output folders of `eql-d2 train`.
        task: "bbox" or "segm".
        dataset: which test set; None is the first one of the first run that can be read.
        progress: wraps the list of folders, as tqdm does.
        unfinished: whether runs that were not evaluated at their end count, too.

    Raises:
        InputError: no run can be read; says why for each.
    """
    runs: list[Run] = []
    skipped: dict[str, str] = {}
    for folder in progress(list(dict.fromkeys(os.path.normpath(f) for f in folders))):
        try:
            run = read_run(Path(folder), task, dataset, unfinished)
            check_same_categories(runs, run)
        except (ValueError, OSError) as error:
            skipped[str(folder)] = str(error)
            continue
        runs.append(run)
        dataset = run.dataset
    if not runs:
        reasons = "; ".join(f"{folder}: {why}" for folder, why in skipped.items())
        raise InputError(f"no run could be read ({reasons})")
    return Comparison(task, runs[0].dataset, group_runs(runs), skipped)


def check_same_categories(runs: list[Run], run: Run) -> None:
    """Raise if the run was evaluated on other categories than the ones before it."""
    names = [row["name"] for row in run.categories]
    for other in runs:
        if names and other.categories and names != [row["name"] for row in other.categories]:
            raise InputError(f"{run.folder} was evaluated on other categories than {other.folder}")


def group_runs(runs: list[Run]) -> list[Configuration]:
    """Runs of one configuration together, in the order of their first."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(configuration_key(run.config), []).append(run)
    labels = [label_of(group) for group in groups.values()]
    if len(set(labels)) < len(labels):  # folders of one name below several others
        labels = [str(group[0].folder) for group in groups.values()]
    return [Configuration(label, group) for label, group in zip(labels, groups.values())]


def label_of(runs: list[Run]) -> str:
    """`eql` for eql_0 and eql_1, the folder's own name for a single run."""
    names = [run.folder.resolve().name for run in runs]
    shared = os.path.commonprefix(names).rstrip("_-. ") if len(names) > 1 else names[0]
    return shared or names[0]


def differing_keys(configurations: list[Configuration]) -> dict[str, list[str]]:
    """Config key -> its value in each configuration, for the keys in which they differ."""
    flat = [flatten(c.runs[0].config) for c in configurations]
    keys = sorted({key for config in flat for key in config})
    rows = {key: [config.get(key, "(no such key)") for config in flat] for key in keys}
    return {
        key: values for key, values in rows.items() if len(set(values)) > 1 and key not in NOT_PART_OF_A_CONFIGURATION
    }
