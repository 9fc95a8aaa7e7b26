"""What each process of `eql-d2 train` and of tools/train_net.py does."""

import logging
import os

from detectron2.evaluation import verify_results
from detectron2.utils import comm
from tabulate import tabulate

from eql_d2.engine.checkpoint import LongTailCheckpointer
from eql_d2.engine.checks import check_run
from eql_d2.engine.dataset_checks import check_classes_of_model
from eql_d2.engine.evaluators import PICTURE
from eql_d2.engine.gradient_balance import GRADIENT_BALANCE_FILE
from eql_d2.engine.interruption import resumable_tool
from eql_d2.engine.settings import settings_of
from eql_d2.engine.setup import setup
from eql_d2.engine.trainer import Trainer
from eql_d2.errors import InputError
from eql_d2.evaluation.run_folder import EVALUATION_CONFIG, TRAINING_CONFIG

logger = logging.getLogger(__name__)


def main(args) -> None:
    """Train, or with ``--eval-only`` evaluate; to be started by :func:`eql_d2.engine.launch.launch_tool`."""
    with resumable_tool(args):
        cfg = setup(args)
        results = evaluate(args, cfg) if args.eval_only else train(args, cfg)
        if comm.is_main_process():
            logger.info(summarize_run(cfg, results))


def evaluate(args, cfg):
    check_run(cfg, train=False)
    model, settings = Trainer.build_model(cfg), settings_of(cfg)
    checkpointer = LongTailCheckpointer(model, save_dir=settings.output_dir)
    if not settings.weights and not (args.resume and checkpointer.has_checkpoint()):
        raise InputError(
            f"{settings.keys['weights']} is '': there is no trained model to evaluate. Set it to a checkpoint"
        )
    loaded = checkpointer.resume_or_load(settings.weights, resume=args.resume)
    check_classes_of_model(settings, loaded.get("thing_classes"))
    results = Trainer.evaluate(cfg, model)
    if settings.expected_results and comm.is_main_process():
        verify_results(cfg, results)
    return results


def train(args, cfg):
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


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
    files = {
        "checkpoint": "model_final.pth",
        "log": "log.txt",
        "curves": "metrics.json",
        "gradient balance": GRADIENT_BALANCE_FILE,
        "config": TRAINING_CONFIG,
        "config of the evaluation": EVALUATION_CONFIG,
        **{f"picture of {dataset}": os.path.join("inference", dataset, PICTURE) for dataset in run.test_sets},
    }
    paths = {name: os.path.join(run.output_dir, file) for name, file in files.items()}
    lines += [f"{name}: {path}" for name, path in paths.items() if os.path.exists(path)]
    return "\n".join(["done.", *lines])
