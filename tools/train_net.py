#!/usr/bin/env python
"""Train and evaluate a long-tailed detector from a config file, a YAML file or a LazyConfig (.py).

    python tools/train_net.py --config-file configs/MiniLVIS/eql_faster_rcnn.yaml --num-gpus 1
    python tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS output/model_final.pth

A mistake in the input is one line, `error: ...`, and exit code 1; EQL_D2_TRACEBACK=1 shows where it came from.
SIGTERM or SIGINT saves a checkpoint and exits with 143 or 130; the last line says how to go on.
"""

from detectron2.engine import default_argument_parser

from eql_d2.engine import launch_tool
from eql_d2.engine.main import main

if __name__ == "__main__":
    launch_tool(main, default_argument_parser().parse_args())
