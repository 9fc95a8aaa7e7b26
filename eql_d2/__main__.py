"""`python -m eql_d2`: the command `eql-d2`."""

import sys

from eql_d2.cli import main

if __name__ == "__main__":
    sys.exit(main())
