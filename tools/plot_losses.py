#!/usr/bin/env python
"""Draw the pictures of docs/losses.md: what each registered loss does to a rare, a common and a frequent category.

    python tools/plot_losses.py
    python tools/plot_losses.py --loss EqualizationLoss --output /tmp/eql --opts \\
        MODEL.ROI_BOX_HEAD.CLS_LOSS.EqualizationLoss.TAIL.GROUPS r

The categories and their counts are LVIS v1's.
"""

import argparse
import sys
from pathlib import Path

import torch

from eql_d2 import CLS_LOSS_REGISTRY
from eql_d2.config import default_config
from eql_d2.drawing.losses import plot_loss, plot_overview
from eql_d2.engine.checks import explained_config_errors
from eql_d2.engine.launch import one_line_errors


def main() -> int:
    known = sorted(name for name, _ in CLS_LOSS_REGISTRY)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="docs/figures/losses", help="folder, default docs/figures/losses")
    parser.add_argument(
        "--loss", nargs="+", choices=known, metavar="NAME", help="only these; default: all, and an overview of all"
    )
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="config overrides of the losses")
    args = parser.parse_args()
    torch.set_num_threads(1)  # thousands of small steps, which threads would slow down
    names, output = args.loss or known, Path(args.output)
    with one_line_errors(), explained_config_errors(default_config(), "--opts"):
        for name in names:
            plot_loss(name, output / f"{name}.png", args.opts)
            print(output / f"{name}.png", flush=True)
        if args.loss is None:
            plot_overview(names, output / "overview.png")
    print(f"drew {len(names)} {'loss' if len(names) == 1 else 'losses'} into {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
