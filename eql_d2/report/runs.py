"""What the output folder of a run holds, and which runs are repetitions of one another.

Reads the files that training and evaluation write (docs/evaluation.md); nothing is computed anew from predictions.
"""

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from eql_d2.errors import InputError
from eql_d2.evaluation.compare import (
    GRADIENT_BALANCE_FILE,
    NOT_PART_OF_A_CONFIGURATION,
    configuration_key,
    flatten,
    last_scores,
    read_lines,
    read_run_config,
    test_sets,
    what_is_unfinished,
)

REQUIRED_COLUMNS = ("index", "name", "group", "train_images", "AP")
ANALYSIS_KEYS = ("metrics", "frequency_bins", "calibration", "confusion")
TEXT_COLUMNS = ("name", "group", "category_id")


@dataclass(frozen=True)
class Run:
    """One finished run.

    Args:
        metrics: name -> percent, of one task on one dataset.
        curves: name -> {iteration: value}, all finite.
        categories: a dict for each category, in the model's order, as in categories_<task>.csv; numbers are floats, and
            None where the file has no value. Empty for a run that was evaluated without that file.
        analysis: analysis_<task>.json, or None.
        gradients: (positive, negative) of each category, summed over training and over stages, or None.
    """

    folder: Path
    config: dict
    dataset: str
    metrics: dict[str, float]
    curves: dict[str, dict[int, float]]
    categories: list[dict]
    analysis: dict | None
    gradients: list[tuple[float, float]] | None

    @property
    def inference_folder(self) -> Path:
        return self.folder / "inference" / self.dataset

    def series(self, name: str) -> dict[int, float]:
        """A curve; in a cascade that of its last stage. {} if it was not logged."""
        if name in self.curves:
            return self.curves[name]
        stages = sorted(key for key in self.curves if key.startswith("stage") and key.endswith(f"/{name}"))
        return self.curves[stages[-1]] if stages else {}


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


def read_run(folder: Path, task: str, dataset: str | None, unfinished: bool = False) -> Run:
    """
    Raises:
        InputError: no run's folder, one that was not evaluated at its end, or one without results of the task on the
            dataset.
    """
    config = read_run_config(folder)
    tested = test_sets(config)
    if dataset is None and not tested:
        raise InputError(f"{folder} was evaluated on no dataset (DATASETS.TEST is empty)")
    dataset = dataset or tested[0]
    if dataset not in tested:
        raise InputError(f"{folder} was not evaluated on {dataset}, but on {', '.join(tested) or 'nothing'}")
    inference = folder / "inference" / dataset
    analysis = read_analysis(inference / f"analysis_{task}.json")
    categories = read_categories(inference / f"categories_{task}.csv")
    lines = read_lines(folder / "metrics.json")
    reason = what_is_unfinished(config, lines)
    if reason and not unfinished:
        raise InputError(reason)
    metrics = analysis["metrics"] if analysis else last_scores(lines, task, dataset)
    if not metrics:
        raise InputError(f"{folder} has no {task} results on {dataset}: was the run evaluated to its end?")
    gradients = read_gradients(folder / GRADIENT_BALANCE_FILE)
    if gradients and categories and len(gradients) != len(categories):
        raise InputError(
            f"{folder}: {GRADIENT_BALANCE_FILE} has {len(gradients)} categories, the evaluation {len(categories)}"
        )
    return Run(folder, config, dataset, metrics, curves_of(lines), categories, analysis, gradients)


def read_analysis(path: Path) -> dict | None:
    """analysis_<task>.json, None without a file, or an InputError for one of another format."""
    analysis = read_json_object(path)
    missing = [key for key in ANALYSIS_KEYS if key not in analysis] if analysis else []
    if missing:
        raise InputError(f"{path} is of another format: it lacks {missing}")
    return analysis


def read_json_object(path: Path) -> dict | None:
    """The object in the file, None without a file, or an InputError that names it."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is half-written or no JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no JSON object")
    return content


def curves_of(lines: list[dict]) -> dict[str, dict[int, float]]:
    """name -> {iteration: value}; what was logged again after resuming counts. `loss_cls` is that of all stages."""
    curves: dict[str, dict[int, float]] = {}
    for line in lines:
        for name, value in line.items():
            if isinstance(value, (int, float)) and math.isfinite(value) and "iteration" in line:
                curves.setdefault(name, {})[int(line["iteration"])] = float(value)
    stages = [curve for name, curve in curves.items() if name.startswith("loss_cls_stage")]
    if stages:
        shared = set.intersection(*map(set, stages))
        curves["loss_cls"] = {i: sum(curve[i] for curve in stages) for i in sorted(shared)}
    return curves


def read_categories(path: Path) -> list[dict]:
    """Rows of categories_<task>.csv, [] without a file."""
    if not path.is_file():
        return []
    try:
        return parse_categories(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is half-written or of another format: {error}") from error


def parse_categories(text: str) -> list[dict]:
    """Rows of categories_<task>.csv, or an InputError."""
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    if not text.endswith("\n") or not rows or any(None in row or None in row.values() for row in rows):
        raise InputError("a line is cut off, or there is none")
    missing = [column for column in REQUIRED_COLUMNS if column not in rows[0]]
    if missing:
        raise InputError(f"there are no columns {missing}")
    return [{key: _value(key, value) for key, value in row.items()} for row in rows]


def _value(column: str, text: str):
    if column in TEXT_COLUMNS:
        return text
    return float(text) if text else None


def read_gradients(path: Path) -> list[tuple[float, float]] | None:
    """(positive, negative) of each category, added over stages; None without a file."""
    content = read_json_object(path)
    if content is None:
        return None
    try:
        stages = [list(zip(s["positive"], s["negative"], strict=True)) for s in content["stages"]]
        return [(sum(p for p, _ in pairs), sum(n for _, n in pairs)) for pairs in zip(*stages, strict=True)]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is of another format: {error!r}") from error


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
