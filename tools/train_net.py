#!/usr/bin/env python
"""`eql-d2 train`, from a clone, where Detectron2's projects have it."""

import sys

from eql_d2.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
