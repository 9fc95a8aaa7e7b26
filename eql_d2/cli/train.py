"""Train and evaluate a detector from a config, a YAML file or a LazyConfig (.py).

    eql-d2 train --config-file MiniLVIS/eql_faster_rcnn
    eql-d2 train --config-file my.yaml --num-gpus 8 SOLVER.MAX_ITER 1000 OUTPUT_DIR output/mine
    eql-d2 train --config-file my.yaml --eval-only MODEL.WEIGHTS output/mine/model_final.pth

SIGTERM or SIGINT saves a checkpoint and exits with 143 or 130; the last line says how to go on.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of Detectron2's ``default_argument_parser``, which help should not have to import."""
    parser.add_argument(
        "--config-file", default="", metavar="FILE", help="a file, or a config of `eql-d2 configs list`"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of the output folder")
    parser.add_argument("--eval-only", action="store_true", help="evaluate only")
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs (or processes, on a CPU) of this machine")
    parser.add_argument("--num-machines", type=int, default=1, help="machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0")
    parser.add_argument("--dist-url", help="tcp://HOST:PORT where the processes meet; default: on this machine")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="overrides: KEY VALUE ... of a YAML file, path.key=value of a LazyConfig"
    )


def run(args: argparse.Namespace) -> None:
    from detectron2.engine import default_argument_parser

    from eql_d2.config_files import config_path
    from eql_d2.engine.launch import launch_tool
    from eql_d2.engine.main import main

    args.config_file = config_path(args.config_file)
    args.dist_url = args.dist_url or default_argument_parser().get_default("dist_url")
    launch_tool(main, args)
