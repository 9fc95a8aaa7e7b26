"""The last lines of a run: its results, and where everything is."""

import os

from tabulate import tabulate

from eql_d2.engine.evaluators import PICTURE
from eql_d2.engine.gradient_balance import GRADIENT_BALANCE_FILE
from eql_d2.engine.settings import settings_of
from eql_d2.evaluation.run_folder import EVALUATION_CONFIG, TRAINING_CONFIG


def summarize_run(cfg, results: dict[str, dict]) -> str:
    """A table of the results, and the paths of what the run wrote.

    Args:
        results: task -> {metric -> score}, or dataset -> task -> {metric -> score} with several test sets.
    """
    run = settings_of(cfg)
    by_dataset = results if len(run.test_sets) > 1 else dict.fromkeys(run.test_sets, results)
    lines = []
    for dataset, tasks in by_dataset.items():
        for task, scores in (tasks or {}).items():
            row = {name: f"{score:.2f}" for name, score in scores.items() if "-" not in name}
            lines += [f"{task} on {dataset}:", tabulate([row], headers="keys", tablefmt="pipe")]
    paths = {
        "checkpoint": os.path.join(run.output_dir, "model_final.pth"),
        "log": os.path.join(run.output_dir, "log.txt"),
        "curves": os.path.join(run.output_dir, "metrics.json"),
        "gradient balance": os.path.join(run.output_dir, GRADIENT_BALANCE_FILE),
        "config": os.path.join(run.output_dir, TRAINING_CONFIG),
        "config of the evaluation": os.path.join(run.output_dir, EVALUATION_CONFIG),
        **{
            f"picture of {dataset}": os.path.join(run.output_dir, "inference", dataset, PICTURE)
            for dataset in run.test_sets
        },
    }
    lines += [f"{name}: {path}" for name, path in paths.items() if os.path.exists(path)]
    return "\n".join(["done.", *lines])
