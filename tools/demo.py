#!/usr/bin/env python
"""`eql-d2 demo`, from a clone."""

import sys

from eql_d2.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
