#!/usr/bin/env python
"""`eql-d2 train`, from a clone: tools/train_net.py, which takes LazyConfigs too, by their name in Detectron2."""

import sys

from eql_d2.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
