#!/usr/bin/env python
"""Train and evaluate a long-tailed detector from a LazyConfig.

    python tools/lazyconfig_train_net.py --config-file configs/lazy/mini_lvis_eql.py --num-gpus 1
    python tools/lazyconfig_train_net.py --config-file ... --eval-only train.init_checkpoint=output/model_final.pth

A mistake in the input is one line, `error: ...`, and exit code 1; EQL_D2_TRACEBACK=1 shows where it came from.
SIGTERM or SIGINT saves a checkpoint and exits with 143 or 130; the last line says how to go on.
"""

from detectron2.engine import default_argument_parser

from eql_d2.engine import (
    LongTailCheckpointer,
    launch_tool,
    one_line_errors,
    resumable_tool,
)
from eql_d2.engine.lazy import build_lazy_model, build_lazy_trainer, setup_lazy, test_lazy


def main(args):
    with resumable_tool(args):
        run(args)


def run(args):
    with one_line_errors():
        cfg = setup_lazy(args)
        if args.eval_only:
            model = build_lazy_model(cfg)
            LongTailCheckpointer(model).load(cfg.train.init_checkpoint)
        else:
            trainer, start_iter, interruption = build_lazy_trainer(cfg, args.resume)
    if args.eval_only:
        test_lazy(cfg, model)
    else:
        with one_line_errors(), interruption.handled():
            trainer.train(start_iter, cfg.train.max_iter)


if __name__ == "__main__":
    launch_tool(main, default_argument_parser().parse_args())
