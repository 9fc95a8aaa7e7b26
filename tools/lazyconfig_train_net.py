#!/usr/bin/env python
"""Train and evaluate a long-tailed detector from a LazyConfig: tools/train_net.py, which takes one, too.

python tools/lazyconfig_train_net.py --config-file configs/lazy/mini_lvis_eql.py --num-gpus 1
python tools/lazyconfig_train_net.py --config-file ... --eval-only train.init_checkpoint=output/model_final.pth
"""

from detectron2.engine import default_argument_parser

from eql_d2.engine import launch_tool
from eql_d2.engine.main import main

if __name__ == "__main__":
    launch_tool(main, default_argument_parser().parse_args())
