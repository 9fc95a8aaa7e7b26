"""What each process of `eql-d2 train` and of tools/train_net.py does."""

import logging

from detectron2.evaluation import verify_results
from detectron2.utils import comm

from eql_d2.engine.checkpoint import LongTailCheckpointer
from eql_d2.engine.checks import check_run
from eql_d2.engine.dataset_checks import check_classes_of_model
from eql_d2.engine.errors import one_line_errors
from eql_d2.engine.interruption import resumable_tool
from eql_d2.engine.settings import settings_of
from eql_d2.engine.setup import setup
from eql_d2.engine.summary import summarize_run
from eql_d2.engine.trainer import Trainer
from eql_d2.errors import InputError

logger = logging.getLogger(__name__)


def main(args) -> None:
    """Train, or with ``--eval-only`` evaluate.

    Args:
        args: what Detectron2's ``default_argument_parser`` parses.
    """
    with resumable_tool(args):
        run(args)


def run(args) -> None:
    with one_line_errors():
        cfg = setup(args)
    results = evaluate(args, cfg) if args.eval_only else train(args, cfg)
    if comm.is_main_process():
        logger.info(summarize_run(cfg, results))


def evaluate(args, cfg):
    with one_line_errors():
        check_run(cfg, train=False)
        model, settings = Trainer.build_model(cfg), settings_of(cfg)
        checkpointer = LongTailCheckpointer(model, save_dir=settings.output_dir)
        if not settings.weights and not (args.resume and checkpointer.has_checkpoint()):
            raise InputError(
                f"{settings.keys['weights']} is '': there is no trained model to evaluate. Set it to a checkpoint"
            )
        loaded = checkpointer.resume_or_load(settings.weights, resume=args.resume)
        check_classes_of_model(settings, loaded.get("thing_classes"))
    with one_line_errors():
        results = Trainer.evaluate(cfg, model)
    if settings.expected_results and comm.is_main_process():
        verify_results(cfg, results)
    return results


def train(args, cfg):
    with one_line_errors():
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
    with one_line_errors():
        return trainer.train()
