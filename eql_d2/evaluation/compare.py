"""A table of finished runs: one row a configuration, mean and spread over its seeds."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import yaml
from tabulate import tabulate

from eql_d2.errors import InputError, one_line

METRICS = ("AP", "APr", "APc", "APf")
GRADIENT_BALANCE_FILE = "gradient_balance.json"  # of a run's folder
# What differs between runs that are repetitions of one another.
NOT_PART_OF_A_CONFIGURATION = ("SEED", "OUTPUT_DIR", "train.seed", "train.output_dir")
TRAINING_CONFIG = "config.yaml"  # in a run's folder
EVALUATION_CONFIG = "inference/config.yaml"


class PlainLoader(yaml.SafeLoader):
    """Reads the Python objects of a LazyConfig's `config.yaml` as plain data: nothing is imported or called."""


def _plain(loader: PlainLoader, tag: str, node: yaml.Node):
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return node.value or tag.partition(":")[2]  # the name of a class or function


PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/", _plain)


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
    runs: dict[str, list[Path]] = {}
    left_out = []
    for folder in map(Path, folders):
        config = read_run_config(folder)
        reason = what_is_unfinished(config, read_lines(folder / "metrics.json"))
        if reason and not unfinished:
            left_out.append(f"{folder} is left out: {reason}")
        else:
            runs.setdefault(configuration_key(config), []).append(folder)
    if not runs:
        raise InputError("; ".join(left_out) or "no run is named")
    rows = []
    for group in runs.values():
        scores = [_scores(folder, task, dataset) for folder in group]
        row = {"run": group[0].name, "seeds": len(group)}
        for metric in METRICS:
            row[metric] = mean_and_spread([s[metric] for s in scores if metric in s])
        rows.append(row)
    return "\n".join([tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".1f"), *left_out])


def what_is_unfinished(config: dict, lines: list[dict]) -> str:
    """Why the scores of a run are not those of its end, or "".

    Args:
        config: of the run.
        lines: of its metrics.json; of a folder in which nothing was trained, none.
    """
    evaluated = [line["iteration"] for line in lines if "iteration" in line and any(k.endswith("/AP") for k in line)]
    end = section(config, "SOLVER").get("MAX_ITER", section(config, "train").get("max_iter"))
    if section(config, "SOLVER").get("REFERENCE_WORLD_SIZE"):  # the number of iterations went by that of processes
        return ""
    if not evaluated or not isinstance(end, int) or evaluated[-1] >= end - 1:
        return ""
    return (
        f"its last evaluation is of iteration {evaluated[-1] + 1} of {end}. Run its command again with --resume, or "
        f"give --unfinished to count it as it is"
    )


def run_config_file(folder: Path) -> Path:
    """The config of the training in the folder, or where nothing was trained that of the evaluation.

    Raises:
        InputError: there is none.
    """
    for name in (TRAINING_CONFIG, EVALUATION_CONFIG):
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    raise InputError(f"{folder} is no output folder of training: it has no config.yaml")


def read_run_config(folder: Path) -> dict:
    """What :func:`run_config_file` holds.

    Raises:
        InputError: there is none, or it is broken.
    """
    return read_config(run_config_file(folder))


def read_config(path) -> dict:
    """A dumped config of either kind.

    Raises:
        InputError: it is broken.
    """
    try:
        config = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=PlainLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not a YAML file: {one_line(error)}") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no config")
    return config


def flatten(node: dict, prefix: str = "") -> dict[str, str]:
    """Full key -> value, as text."""
    flat: dict[str, str] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def configuration_key(config: dict) -> str:
    """Equal for runs that are repetitions of one another."""
    return json.dumps(shared_part(config), sort_keys=True)


def shared_part(node, prefix: str = ""):
    """A config, or a section of it, without what differs between repetitions."""
    if not isinstance(node, dict):
        return node
    return {
        key: shared_part(value, f"{prefix}{key}.")
        for key, value in node.items()
        if f"{prefix}{key}" not in NOT_PART_OF_A_CONFIGURATION
    }


def test_sets(config: dict) -> list[str]:
    """`DATASETS.TEST`, of a LazyConfig `dataloader.test.dataset.names`; [] for a config without."""
    if isinstance(config.get("dataloader"), dict):
        names = section(config, "dataloader", "test", "dataset").get("names") or ()
        return [names] if isinstance(names, str) else list(names)
    return list(section(config, "DATASETS").get("TEST") or ())


def section(config: dict, *keys: str) -> dict:
    """The section within sections of a config, {} where there is none."""
    for key in keys:
        found = config.get(key)
        config = found if isinstance(found, dict) else {}
    return config


def _scores(folder: Path, task: str, dataset: str | None) -> dict[str, float]:
    """Metrics of the last evaluation, those that are numbers."""
    tested = test_sets(read_run_config(folder))
    if dataset is None and len(tested) > 1:
        raise InputError(f"{folder} was evaluated on {', '.join(tested)}: choose one by --dataset")
    if dataset is not None and tested and dataset not in tested:
        raise InputError(f"{folder} was not evaluated on {dataset}, but on {', '.join(tested)}")
    path = folder / "metrics.json"
    scores = last_scores(read_lines(path), task, dataset or (tested[0] if tested else ""))
    if not scores:
        raise InputError(f"{path} has no {task} results: was the run evaluated to its end?")
    return {name: value for name, value in scores.items() if math.isfinite(value)}


def read_lines(path: Path) -> list[dict]:
    """The JSON objects in the lines of metrics.json; a last line that was cut off is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return [line for line in lines if isinstance(line, dict)]


def last_scores(lines: list[dict], task: str, dataset: str) -> dict[str, float]:
    """Metrics of the last evaluation in metrics.json, {} if there was none."""
    for line in reversed(lines):
        for prefix in (f"{task}/", f"{dataset}/{task}/"):  # the latter with several test sets
            if f"{prefix}AP" in line:
                return {key.removeprefix(prefix): v for key, v in line.items() if key.startswith(prefix)}
    return {}


def mean_and_spread(values: list[float]) -> str:
    """`mean ± sample standard deviation` with one decimal; of a single value no spread, of none an empty string."""
    if not values:
        return ""
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"
