"""Classification losses for the box predictor: one file each, registered in CLS_LOSS_REGISTRY."""

import importlib
import pkgutil

from eql_d2.losses.base import ClassificationLoss, SigmoidLoss, SoftmaxLoss, keeping_state, losses_of
from eql_d2.losses.build import CLS_LOSS_REGISTRY, build_cls_loss

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    *sorted(name for name, _ in CLS_LOSS_REGISTRY),
    "CLS_LOSS_REGISTRY",
    "ClassificationLoss",
    "SigmoidLoss",
    "SoftmaxLoss",
    "build_cls_loss",
    "keeping_state",
    "losses_of",
]
globals().update(CLS_LOSS_REGISTRY)
