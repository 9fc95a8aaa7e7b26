#!/usr/bin/env python
"""`eql-d2 export`, from a clone."""

import sys

from eql_d2.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
