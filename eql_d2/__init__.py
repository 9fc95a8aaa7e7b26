"""Losses for objects that are rare: Equalization Loss and its field, in Detectron2's ROI heads.

Importing this package registers the losses, the ROI heads and the MiniLVIS dataset.
"""

from pathlib import Path

from eql_d2.errors import InputError

__version__ = "0.1.0"

try:
    import detectron2  # noqa: F401
    import torch
except ImportError as error:
    raise ImportError(
        "eql_d2 needs torch and Detectron2, and pip cannot choose their builds for you. In a clone of eql_d2, "
        "`make setup` installs both into .venv; elsewhere install torch and torchvision, then "
        "`pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2`"
    ) from error

if not hasattr(torch.amp, "GradScaler"):
    raise ImportError(f"eql_d2 needs torch 2.3 or newer, and this is torch {torch.__version__}")

from eql_d2.config import add_eql_config
from eql_d2.data import ClassFrequencies, TailRule
from eql_d2.losses import CLS_LOSS_REGISTRY, ClassificationLoss, build_cls_loss
from eql_d2.modeling import LongTailFastRCNNOutputLayers
from eql_d2.removed_configs import replacement

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


def get_config_file(name: str) -> str:
    """Path of a config that comes with the package, e.g. ``get_config_file("LVISv1/eql_mask_rcnn_R_50_FPN_1x.yaml")``.

    Raises:
        InputError: no such config, with those that there are, or with what replaced a removed one.
    """
    root = Path(__file__).parent / "configs"
    path = root / name
    if not path.is_file():
        if words := replacement(name):
            raise InputError(f"the config '{name}' was replaced by: {words}")
        known = sorted(str(p.relative_to(root)) for p in root.rglob("*.yaml"))
        raise InputError(f"there is no config '{name}'; choose one of {known}")
    return str(path)


from eql_d2 import mini_lvis  # noqa: E402, F401  (registers it; last, since it is made of all the rest)
