"""Losses for objects that are rare: Equalization Loss and its field, in Detectron2's ROI heads.

Importing this package is cheap: neither torch nor Detectron2 until something needs them. The losses, ROI heads and
MiniLVIS are registered at once where Detectron2 is imported already, otherwise by ``add_eql_config``.
"""

import importlib
import sys
from typing import TYPE_CHECKING

from eql_d2.config_files import find_config
from eql_d2.errors import how_to_install

if TYPE_CHECKING:
    from eql_d2.config import add_eql_config
    from eql_d2.data.frequencies import ClassFrequencies, TailRule
    from eql_d2.losses import CLS_LOSS_REGISTRY, ClassificationLoss, build_cls_loss
    from eql_d2.modeling import LongTailFastRCNNOutputLayers

__version__ = "0.2.0"

__all__ = [
    "CLS_LOSS_REGISTRY",
    "ClassFrequencies",
    "ClassificationLoss",
    "LongTailFastRCNNOutputLayers",
    "TailRule",
    "add_eql_config",
    "build_cls_loss",
    "get_config_file",
]

_HOMES = {
    "CLS_LOSS_REGISTRY": "eql_d2.losses",
    "ClassFrequencies": "eql_d2.data.frequencies",
    "ClassificationLoss": "eql_d2.losses",
    "LongTailFastRCNNOutputLayers": "eql_d2.modeling",
    "TailRule": "eql_d2.data.frequencies",
    "add_eql_config": "eql_d2.config",
    "build_cls_loss": "eql_d2.losses",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'eql_d2' has no attribute '{name}'")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if cure := how_to_install(error):
            raise ModuleNotFoundError(f"eql_d2.{name}: {cure}", name=error.name) from error
        raise


def get_config_file(name: str) -> str:
    """Path of a config that comes with the package, e.g. ``get_config_file("LVISv1/eql_mask_rcnn_R_50_FPN_1x.yaml")``.

    Raises:
        InputError: no such config, with the nearest names, or with what replaced a removed one.
    """
    return str(find_config(name))


if sys.modules.get("detectron2"):
    importlib.import_module("eql_d2.registration")
