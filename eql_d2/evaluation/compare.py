"""A table of finished runs: one row a configuration, mean and spread over its seeds."""

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Dict, List, Sequence

import yaml
from tabulate import tabulate

METRICS = ("AP", "APr", "APc", "APf")
# What differs between runs that are repetitions of one another.
NOT_PART_OF_A_CONFIGURATION = ("SEED", "OUTPUT_DIR")


def compare_runs(folders: Sequence[Path], task: str = "bbox") -> str:
    """Markdown table of AP, APr, APc and APf in percent, mean ± sample standard deviation over seeds.

    Args:
        folders: output folders of `tools/train_net.py`. Runs whose `config.yaml` differ only in the seed are
            one row, named by its first folder.
        task: "bbox" or "segm".

    Raises:
        ValueError: a folder without `config.yaml`, or without results of the task.
    """
    runs: Dict[str, List[Path]] = {}
    for folder in map(Path, folders):
        runs.setdefault(configuration_key(read_run_config(folder)), []).append(folder)
    rows = []
    for group in runs.values():
        scores = [_last_scores(folder, task) for folder in group]
        row = {"run": group[0].name, "seeds": len(group)}
        for metric in METRICS:
            row[metric] = mean_and_spread([s[f"{task}/{metric}"] for s in scores])
        rows.append(row)
    return tabulate(rows, headers="keys", tablefmt="pipe")


def read_run_config(folder: Path) -> dict:
    """The run's `config.yaml`.

    Raises:
        ValueError: there is none, or it is broken.
    """
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{folder} is no output folder of tools/train_net.py: it has no config.yaml")
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds no config")
    return config


def configuration_key(config: dict) -> str:
    """Equal for runs that are repetitions of one another."""
    shared = {key: value for key, value in config.items() if key not in NOT_PART_OF_A_CONFIGURATION}
    return json.dumps(shared, sort_keys=True)


def _last_scores(folder: Path, task: str) -> dict:
    path = folder / "metrics.json"
    lines = path.read_text().splitlines() if path.is_file() else []
    for line in reversed(lines):
        scores = json.loads(line)
        if f"{task}/AP" in scores:
            return scores
    raise ValueError(f"{path} has no {task} results: was the run evaluated to its end?")


def mean_and_spread(values: List[float]) -> str:
    """`mean ± sample standard deviation` with one decimal; of a single value no spread."""
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"
