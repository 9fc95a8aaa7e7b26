"""Keys of this package that the chosen model would not read: an error, since the run would go on without them.

They are read by the box predictor of our ROI heads, and most of them by our dense detectors. A model of Detectron2's
own, such as RetinaNet, trains on its own classification loss, whatever ``CLS_LOSS.NAME`` says.
"""

import inspect
import logging
from collections.abc import Iterator

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY, GeneralizedRCNN
from omegaconf import DictConfig
from torch import nn

from eql_d2.config import default_config
from eql_d2.data.frequencies import COUNTS_KEY
from eql_d2.engine.settings import config_nodes, loss_name
from eql_d2.errors import InputError
from eql_d2.losses import CLS_LOSS_REGISTRY, ClassificationLoss, losses_of
from eql_d2.losses.hyper_parameters import NODE
from eql_d2.modeling.dense import LongTailDenseMixin
from eql_d2.modeling.fcos import LongTailFCOS
from eql_d2.modeling.long_tail import OUR_DETECTORS, target_of

logger = logging.getLogger(__name__)

ARCHITECTURE_KEY, HEAD_KEY = "MODEL.META_ARCHITECTURE", "MODEL.ROI_HEADS.NAME"
OUR_HEADS = "LongTailROIHeads, LongTailCascadeROIHeads or LongTailRes5ROIHeads"
CALIBRATION, META_REWEIGHT = "MODEL.ROI_BOX_HEAD.CALIBRATION", "MODEL.ROI_BOX_HEAD.META_REWEIGHT"
# Key -> the calibrations that read it.
CALIBRATION_KEYS = {
    "STRENGTH": ("LogitAdjustment", "NorCal", "FRACAL", "LogN"),
    "SPACE": ("FRACAL",),
    "STATISTICS": ("LogN",),
}
# Keys, and sections, that our box predictor alone reads.
READ_BY_OUR_PREDICTOR = (
    NODE,
    CALIBRATION,
    "MODEL.ROI_BOX_HEAD.THRESHOLDS_FILE",
    META_REWEIGHT,
    "MODEL.ROI_BOX_HEAD.CLS_SCALE",
    "MODEL.ROI_BOX_HEAD.CLS_NORM",
    "MODEL.ROI_HEADS.LAMBDA",
    "MODEL.ROI_HEADS.PRIOR_PROB",
)

# Of these, what our dense detectors read, too, and the one key in it that they do not.
READ_BY_DENSE = (NODE, CALIBRATION, "MODEL.ROI_HEADS.LAMBDA", "MODEL.ROI_HEADS.PRIOR_PROB")
IMAGE_LABELS = f"{NODE}.IMAGE_LABELS"
# Keys of Detectron2's own that stand for a hyper-parameter of the loss.
STOCK_LOSS_KEYS = {
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": f"{NODE}.SigmoidFocalLoss.ALPHA",
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": f"{NODE}.SigmoidFocalLoss.GAMMA",
    "MODEL.RETINANET.PRIOR_PROB": f"PRIOR_PROB of the loss, as {NODE}.SigmoidFocalLoss.PRIOR_PROB",
}


def check_no_ignored_key(cfg: CfgNode) -> None:
    """Every key of the classifier that is not as by default must be read by the model that the config names.

    A hyper-parameter of a loss that is not chosen is a warning, so that a config's loss can be swapped for another.
    """
    changed = changed_keys(cfg)
    ignored_by = what_ignores_our_keys(cfg)
    if ignored_by and changed:
        key, value = next(iter(changed.items()))
        raise InputError(f"{key} is {value!r}, but {ignored_by}")
    if issubclass(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), LongTailDenseMixin):
        check_dense(cfg, changed)
    calibration = changed.get(f"{CALIBRATION}.NAME", "")
    for key, owners in CALIBRATION_KEYS.items():
        if f"{CALIBRATION}.{key}" in changed and calibration not in owners:
            raise InputError(
                f"{CALIBRATION}.{key} is {changed[f'{CALIBRATION}.{key}']}, but {CALIBRATION}.NAME is '{calibration}', "
                f"which does not read it: name {' or '.join(owners)}"
            )
    for key, value in changed.items():
        if key.startswith(f"{META_REWEIGHT}.") and not cfg.MODEL.ROI_BOX_HEAD.META_REWEIGHT.ENABLED:
            raise InputError(f"{key} is {value}, but {META_REWEIGHT}.ENABLED is False, so that nothing reads it")
        owner = key.removeprefix(f"{NODE}.").split(".")[0]
        if owner in CLS_LOSS_REGISTRY and owner != loss_name(cfg):
            logger.warning("%s is %r, but the loss is %s, which does not read it", key, value, loss_name(cfg))
    warn_of_another_detector(cfg)


def warn_of_another_detector(cfg: CfgNode) -> None:
    """Keys of FCOS, which are ours, are a warning elsewhere, as are those of a loss that is not chosen."""
    architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    is_a_users = not (is_detectron2s(architecture) or architecture.__module__.startswith("eql_d2."))
    if is_a_users or issubclass(architecture, LongTailFCOS):
        return
    for key, value in changed_in(cfg, "MODEL.FCOS.").items():
        logger.warning("%s is %r, but the detector is %s, which does not read it", key, value, architecture.__name__)


def check_dense(cfg: CfgNode, changed: dict[str, object]) -> None:
    """Our dense detectors must read what is ``changed``, and no key of Detectron2's loss may be."""
    architecture = cfg.MODEL.META_ARCHITECTURE
    for key, value in changed.items():
        if not key.startswith(READ_BY_DENSE) or key == IMAGE_LABELS:
            cure = (
                f"name the loss by {NODE}.NAME" if key == HEAD_KEY else "drop it, or choose a detector with ROI heads"
            )
            raise InputError(f"{key} is {value!r}, but {architecture} has no part that reads it: {cure}")
    for key, value in changed_in(cfg, *STOCK_LOSS_KEYS).items():
        if architecture.endswith("RetinaNet"):
            raise InputError(
                f"{key} is {value}, but {architecture} goes by its classification loss: set {STOCK_LOSS_KEYS[key]}"
            )


def check_model_reads(cfg, model: nn.Module) -> None:
    """What a user's own architecture reads shows when it is built: with a loss chosen, a loss must be in it."""
    if losses_of(model):
        return
    if isinstance(cfg, CfgNode):
        for key, value in changed_keys(cfg).items():
            raise InputError(
                f"{key} is {value!r}, but the model that {ARCHITECTURE_KEY} '{cfg.MODEL.META_ARCHITECTURE}' builds has "
                f"no classification loss of eql_d2: build it by eql_d2.build_cls_loss(cfg), or drop the key"
            )
    for node in config_nodes(cfg.model) if isinstance(cfg, DictConfig) else ():
        target = target_of(node)
        if inspect.isclass(target) and issubclass(target, ClassificationLoss):
            raise InputError(
                f"the config's model names the loss {target.__name__}, but the {type(model).__name__} that it builds "
                f"has no classification loss of eql_d2: it does not use it"
            )


def what_ignores_our_keys(cfg: CfgNode) -> str | None:
    """The part of Detectron2's own that stands where our box predictor would be, and the cure; None for ours.

    What a user has registered may derive from ours, or read the keys itself.
    """
    architecture = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    if is_detectron2s(architecture) and not issubclass(architecture, GeneralizedRCNN):
        ours = OUR_DETECTORS.get(architecture)
        return (
            f"{ARCHITECTURE_KEY} is Detectron2's own '{architecture.__name__}', which has no ROI heads and ignores it: "
            f"drop it, or choose {f'{ours.__name__}, or ' if ours else ''}GeneralizedRCNN with {HEAD_KEY} {OUR_HEADS}"
        )
    if issubclass(architecture, LongTailDenseMixin):
        return None
    head = ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)
    if is_detectron2s(head):
        return f"{HEAD_KEY} is Detectron2's own '{head.__name__}', which ignores it: choose {OUR_HEADS}"
    return None


def is_detectron2s(part: type) -> bool:
    return part.__module__.startswith("detectron2.")


def changed_keys(cfg: CfgNode) -> dict[str, object]:
    """The keys of :data:`READ_BY_OUR_PREDICTOR` that are not as by default, and a head whose name is a loss's."""
    changed = changed_in(cfg, *READ_BY_OUR_PREDICTOR)
    changed.pop(COUNTS_KEY, None)  # counts are also for sampling and for reports
    if getattr(ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME), "loss_name", None):
        changed[HEAD_KEY] = cfg.MODEL.ROI_HEADS.NAME
    return changed


def changed_in(cfg: CfgNode, *sections: str) -> dict[str, object]:
    """The keys whose names begin so, and that are not as by default."""
    by_default = dict(leaves(default_config()))
    return {
        key: value for key, value in leaves(cfg) if key.startswith(sections) and value != by_default.get(key, value)
    }


def leaves(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Full names and values of all keys that are no sections."""
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
