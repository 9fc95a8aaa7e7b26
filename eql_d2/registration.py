"""Importing this module registers the losses, the ROI heads and, last, MiniLVIS."""

import torch

from eql_d2 import losses, mini_lvis, modeling

if not hasattr(torch.amp, "GradScaler"):
    raise ImportError(f"eql_d2 needs torch 2.3 or newer, and this is torch {torch.__version__}")

__all__ = ["losses", "mini_lvis", "modeling"]
