"""Importing this module registers the losses, the ROI heads, the evaluators and, last, MiniLVIS."""

import importlib
import pkgutil

import torch

from eql_d2 import evaluation, losses, mini_lvis, modeling

if not hasattr(torch.amp, "GradScaler"):
    raise ImportError(f"eql_d2 needs torch 2.3 or newer, and this is torch {torch.__version__}")

for module in pkgutil.iter_modules(evaluation.__path__):
    if module.name.endswith("_evaluation"):
        importlib.import_module(f"eql_d2.evaluation.{module.name}")

__all__ = ["losses", "mini_lvis", "modeling"]
