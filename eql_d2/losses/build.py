"""The registry of classification losses."""

from fvcore.common.registry import Registry

from eql_d2.data.frequencies import FrequenciesNotFound
from eql_d2.errors import InputError
from eql_d2.losses.base import ClassificationLoss
from eql_d2.losses.hyper_parameters import NODE, defaults
from eql_d2.losses.iterations import LateStart

CLS_LOSS_REGISTRY = Registry("CLS_LOSS")
CLS_LOSS_REGISTRY.__doc__ = """
Classification losses of the box predictor, chosen by ``MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME``: subclasses of
:class:`ClassificationLoss`, built as ``obj(**obj.from_config(cfg))``.
"""


def _built(loss_class: type, arguments: dict) -> ClassificationLoss:
    """A loss of a config; one whose counts lack what it trains by still scores."""
    try:
        return loss_class(**arguments)
    except FrequenciesNotFound as error:
        return loss_class(**{**arguments, "frequencies": error})


def build_cls_loss(cfg) -> ClassificationLoss:
    """The loss that ``CLS_LOSS.NAME`` names; softmax cross-entropy, Detectron2's own, where it is empty.

    Raises:
        InputError: no loss of that name is registered, or ``CLS_LOSS.START_ITER`` is none that the loss can have, or
            contradicts its own, or ``CLS_LOSS.COMPILE`` is set for one without a compiled step.
    """
    name = cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME or "SoftmaxCrossEntropy"
    if name not in CLS_LOSS_REGISTRY:
        known = sorted(name for name, _ in CLS_LOSS_REGISTRY)
        raise InputError(
            f"{NODE}.NAME is '{name}', but the registered losses are {known}; a loss of your own must be "
            f"imported before add_eql_config(cfg)"
        )
    node = cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS
    loss_class = CLS_LOSS_REGISTRY.get(name)
    arguments = loss_class.from_config(cfg)
    has_start = "start_iter" in defaults(loss_class)
    if has_start and node.START_ITER:
        own = arguments["start_iter"]
        if own not in (0, node.START_ITER):
            raise InputError(f"{NODE}.START_ITER is {node.START_ITER} but {name} starts at {own}: keep one of them")
        arguments["start_iter"] = node.START_ITER
    loss = _built(loss_class, arguments)
    if node.COMPILE:
        if loss.compiled is None:
            able = sorted(name for name, known in CLS_LOSS_REGISTRY if known.compiled is not None)
            raise InputError(f"{NODE}.COMPILE is True, but {name} has no compiled step; these have: {able}")
        loss.compiled = True
    if has_start or not node.START_ITER:
        return loss
    return LateStart(loss.plain(), loss, start_iter=node.START_ITER)
