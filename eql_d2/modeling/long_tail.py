"""Any LazyConfig model of Detectron2's as a long-tailed one: its box predictors get a classification loss of ours.

from eql_d2.modeling import long_tail

model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
model.roi_heads.num_classes = 1203
long_tail(model, loss=L(EqualizationLoss)(frequencies=L(ClassFrequencies.from_dataset)(name="lvis_v1_train")))
"""

import copy
import inspect
import logging
from typing import Any, overload

from detectron2.modeling import RetinaNet
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers, Res5ROIHeads, StandardROIHeads
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig
from torch import nn

from eql_d2.errors import InputError
from eql_d2.losses import ClassificationLoss
from eql_d2.modeling.fast_rcnn import LongTailFastRCNNOutputLayers
from eql_d2.modeling.fcos import LongTailFCOS
from eql_d2.modeling.retinanet import LongTailRetinaNet
from eql_d2.modeling.roi_heads import LongTailCascadeROIHeads, LongTailRes5ROIHeads, LongTailROIHeads
from eql_d2.modeling.torchvision_detectors import long_tail_torchvision

logger = logging.getLogger(__name__)

OUR_HEADS = {
    StandardROIHeads: LongTailROIHeads,
    CascadeROIHeads: LongTailCascadeROIHeads,
    Res5ROIHeads: LongTailRes5ROIHeads,
}
OUR_DETECTORS = {RetinaNet: LongTailRetinaNet, FCOS: LongTailFCOS}
# Detectron2's own switches of the classification loss, which a loss of ours stands in for.
STOCK_LOSS_ARGUMENTS = (
    "use_sigmoid_ce",
    "use_fed_loss",
    "get_fed_loss_cls_weights",
    "fed_loss_num_classes",
)


@overload
def long_tail(model: DictConfig, loss: DictConfig, **arguments: Any) -> DictConfig: ...
@overload
def long_tail(model: nn.Module, loss: ClassificationLoss) -> nn.Module: ...
def long_tail(model, loss, **arguments):
    """Give a LazyConfig model, or a model of torchvision's, a classification loss of this package, in place.

    A cascade gets one for each stage.

    Box regression, thresholds and everything else stay as they are. Detectron2's own switches of the loss
    (``use_sigmoid_ce``, ``use_fed_loss``) are taken out, with a line. The number of classes of the loss is the box
    predictor's. Of a torchvision model, classifier, loss and scores change: see
    :mod:`eql_d2.modeling.torchvision_detectors`, also for how its labels count.

    Args:
        model: the config of a model with ROI heads of Detectron2's, RetinaNet or FCOS (or ours of these, whose loss is
            then replaced). Or a FasterRCNN, MaskRCNN, KeypointRCNN or RetinaNet of torchvision's.
        loss: the config of a :class:`eql_d2.losses.ClassificationLoss`, `L(EqualizationLoss)(frequencies=...)`; for
            torchvision the loss itself.
        arguments: further arguments of :class:`eql_d2.modeling.LongTailFastRCNNOutputLayers`: ``image_labels=True``,
            ``cls_temperature=20.0``, ...; of RetinaNet and FCOS, ``calibration`` and their own.

    Returns:
        ``model``.

    Raises:
        InputError: a model that this cannot serve, and why; a loss that lacks an argument.
    """
    if isinstance(model, nn.Module):
        return long_tail_torchvision(model, loss, **arguments)
    require_loss(loss)
    if target_of(model) in (*OUR_DETECTORS, *OUR_DETECTORS.values()):
        return use_dense(model, loss, arguments)
    predictors = box_predictor_nodes(model)
    if not predictors:
        raise InputError(
            f"long_tail needs a LazyConfig's model: one with ROI heads and box predictors (model.roi_heads."
            f"box_predictor or box_predictors), RetinaNet or FCOS; got {described(model)}"
        )
    for predictor in predictors:
        require_stock(predictor, FastRCNNOutputLayers, LongTailFastRCNNOutputLayers, "box predictor")
    head = model.roi_heads
    require_stock(head, *OUR_HEADS, *OUR_HEADS.values(), "ROI head")
    head._target_ = OUR_HEADS.get(target_of(head), target_of(head))
    for predictor in predictors:
        use_loss(predictor, loss, arguments)
    return model


def box_predictor_nodes(model: DictConfig) -> list[DictConfig]:
    """The configs of a model's box predictors, one for each stage of a cascade; [] for a model without."""
    head = model.get("roi_heads") if isinstance(model, DictConfig) else None
    if not isinstance(head, DictConfig):
        return []
    found = head.get("box_predictors", head.get("box_predictor"))
    nodes = found if isinstance(found, ListConfig) else [found]
    return [node for node in nodes if isinstance(node, DictConfig)]


def predictor_nodes(model: DictConfig) -> list[DictConfig]:
    """:func:`box_predictor_nodes`, or the config of a dense detector itself."""
    detector = target_of(model)
    return [model] if inspect.isclass(detector) and issubclass(detector, DenseDetector) else box_predictor_nodes(model)


def use_dense(model: DictConfig, loss: DictConfig, arguments: dict[str, Any]) -> DictConfig:
    """A RetinaNet or FCOS as ours."""
    detector = OUR_DETECTORS.get(target_of(model), target_of(model))
    dropped = [name for name in ("focal_loss_alpha", "focal_loss_gamma") if model.pop(name, None) is not None]
    put_loss(model, detector, dropped, loss, arguments)
    return model


def use_loss(predictor: DictConfig, loss: DictConfig, arguments: dict[str, Any]) -> None:
    dropped = [name for name in STOCK_LOSS_ARGUMENTS if predictor.pop(name, None)]
    put_loss(predictor, LongTailFastRCNNOutputLayers, dropped, loss, arguments)


def put_loss(node: DictConfig, target: type, dropped: list[str], loss: DictConfig, arguments: dict[str, Any]) -> None:
    """Make the node one of ``target`` with the loss, and say which arguments of its own were dropped for that."""
    if dropped:
        logger.info("long_tail: %s goes by its loss, not by %s", target.__name__, dropped)
    node._target_ = target
    node.cls_loss = copy.deepcopy(loss)
    node.cls_loss.num_classes = "${..num_classes}"
    node.update(arguments)


def require_loss(loss: DictConfig) -> None:
    """
    Raises:
        InputError: no config of a classification loss, or one without an argument that has no default.
    """
    loss_class = target_of(loss)
    if not (inspect.isclass(loss_class) and issubclass(loss_class, ClassificationLoss)):
        raise InputError(
            f"long_tail takes the config of a loss, loss=L(EqualizationLoss)(...) with L = detectron2.config.LazyCall; "
            f"got {described(loss)}"
        )
    parameters = inspect.signature(loss_class).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    missing = [name for name in required if name not in loss and name not in ("num_classes", "args", "kwargs")]
    if missing:
        example = "frequencies=L(ClassFrequencies.from_dataset)(name='lvis_v1_train')"
        raise InputError(
            f"{loss_class.__name__} needs {', '.join(missing)}: L({loss_class.__name__})"
            f"({example if missing == ['frequencies'] else '...'})"
        )


def require_stock(node: DictConfig, *classes_and_name) -> None:
    """What is about to be replaced must be a class of Detectron2's or ours: code of a user's own would be lost."""
    *classes, name = classes_and_name
    if target_of(node) not in classes:
        raise InputError(
            f"long_tail replaces {', '.join(c.__name__ for c in classes)}, and the config's {name} is "
            f"{described(node)}, whose own code would be lost: derive it from the class of eql_d2.modeling instead, "
            f"and give it cls_loss yourself"
        )


def target_of(node):
    """The class or function that a config node calls; None for anything else."""
    target = node.get("_target_") if isinstance(node, DictConfig) else None
    return locate(target) if isinstance(target, str) else target


def described(node) -> str:
    target = target_of(node)
    return getattr(target, "__name__", None) or f"a {type(node).__name__}"
