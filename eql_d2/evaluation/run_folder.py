"""What the output folder of a run holds (docs/evaluation.md): the one place where it is read.

Nothing is computed anew from predictions, and neither torch nor Detectron2 is needed.
"""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from eql_d2.data.json_files import read_json
from eql_d2.errors import InputError, one_line

GRADIENT_BALANCE_FILE = "gradient_balance.json"  # of a run's folder
# What differs between runs that are repetitions of one another.
NOT_PART_OF_A_CONFIGURATION = ("SEED", "OUTPUT_DIR", "train.seed", "train.output_dir")
TRAINING_CONFIG = "config.yaml"  # in a run's folder
EVALUATION_CONFIG = "inference/config.yaml"
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


def read_run(folder: Path, task: str, dataset: str | None, unfinished: bool = False) -> Run:
    """
    Raises:
        InputError: no run's folder, one that was not evaluated at its end, or one without results of the task on the
            dataset.
    """
    config = read_run_config(folder)
    tested = datasets_tested(config)
    if dataset is None and not tested:
        raise InputError(f"{folder} was evaluated on no dataset (DATASETS.TEST is empty)")
    dataset = dataset or tested[0]
    if dataset not in tested:
        raise InputError(f"{folder} was not evaluated on {dataset}, but on {', '.join(tested) or 'nothing'}")
    inference = folder / "inference" / dataset
    analysis = read_if_there(inference / f"analysis_{task}.json", ANALYSIS_KEYS)
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


def read_if_there(path: Path, required: Sequence[str]) -> dict | None:
    """The JSON object in the file, None without a file, or an InputError that names it."""
    return read_json(path, required) if path.is_file() else None


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
    content = read_if_there(path, ["stages"])
    if content is None:
        return None
    try:
        stages = [list(zip(s["positive"], s["negative"], strict=True)) for s in content["stages"]]
        return [(sum(p for p, _ in pairs), sum(n for _, n in pairs)) for pairs in zip(*stages, strict=True)]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is of another format: {error!r}") from error


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


def datasets_tested(config: dict) -> list[str]:
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


class PlainLoader(yaml.SafeLoader):
    """Reads the Python objects of a LazyConfig's `config.yaml` as plain data: nothing is imported or called."""


def _plain(loader: PlainLoader, tag: str, node: yaml.Node):
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return node.value or tag.partition(":")[2]  # the name of a class or function


PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/", _plain)
