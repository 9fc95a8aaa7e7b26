#!/usr/bin/env python
"""Train and evaluate a long-tailed detector from a config file, a YAML file or a LazyConfig (.py).

    python tools/train_net.py --config-file configs/MiniLVIS/eql_faster_rcnn.yaml --num-gpus 1
    python tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth

A mistake in the input is one line, `error: ...`, and exit code 1; EQL_D2_TRACEBACK=1 shows where it came from.
SIGTERM or SIGINT saves a checkpoint and exits with 143 or 130; the last line says how to go on.
"""

import logging

from detectron2.engine import default_argument_parser
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from eql_d2.engine import (
    LongTailCheckpointer,
    Trainer,
    check_run,
    launch_tool,
    one_line_errors,
    resumable_tool,
    settings_of,
    setup,
    summarize_run,
)

logger = logging.getLogger("eql_d2.train_net")


def evaluate(args, cfg):
    with one_line_errors():
        check_run(cfg, train=False)
        model, settings = Trainer.build_model(cfg), settings_of(cfg)
        LongTailCheckpointer(model, save_dir=settings.output_dir).resume_or_load(settings.weights, resume=args.resume)
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


def main(args):
    with resumable_tool(args):
        run(args)


def run(args):
    with one_line_errors():
        cfg = setup(args)
    results = evaluate(args, cfg) if args.eval_only else train(args, cfg)
    if comm.is_main_process():
        logger.info(summarize_run(cfg, results))


if __name__ == "__main__":
    launch_tool(main, default_argument_parser().parse_args())
