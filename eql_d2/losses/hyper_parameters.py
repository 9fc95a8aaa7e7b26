"""From a loss's signature to its config node, and from the node back to arguments.

A loss states each hyper-parameter and its default once, in ``__init__``; ``add_eql_config`` makes
``MODEL.ROI_BOX_HEAD.CLS_LOSS.<ClassName>.<ARGUMENT>`` of it, so that yacs checks names and types.
"""

import inspect
from typing import Any

from eql_d2.data.frequencies import ClassFrequencies, FrequenciesNotFound, TailRule
from eql_d2.errors import InputError

NODE = "MODEL.ROI_BOX_HEAD.CLS_LOSS"


def defaults(loss_class: type) -> dict[str, Any]:
    """Keyword-only arguments of the loss that have a default, in order."""
    parameters = inspect.signature(loss_class).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}


def config_node(loss_class: type):
    """The loss's config node, a ``CfgNode``, with its defaults."""
    from detectron2.config import CfgNode  # here, since losses work without Detectron2

    node = CfgNode()
    for name, default in defaults(loss_class).items():
        if isinstance(default, TailRule):
            default = CfgNode({"LAMBDA": None, "MAX_IMAGE_COUNT": None, "GROUPS": None})
        node[name.upper()] = default
    return node


def arguments_from_config(cfg, loss_class: type) -> dict[str, Any]:
    """Keyword arguments of ``loss_class`` from the config.

    Raises:
        InputError: no node (the loss was imported after ``add_eql_config``), or an old key of the original
            project (``MODEL.ROI_HEADS.LAMBDA``, ``PRIOR_PROB``) that contradicts the node, or that the loss ignores.
    """
    name = loss_class.__name__
    losses = cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS
    if name not in losses:
        raise InputError(
            f"there is no config node {NODE}.{name}: import the module that registers {name} before calling "
            f"add_eql_config(cfg)"
        )
    _refuse_ignored_keys(cfg, name)
    arguments = {"num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES}
    for argument, default in defaults(loss_class).items():
        value = losses[name][argument.upper()]
        if isinstance(default, TailRule):
            value = _tail_rule(cfg, value, name)
        elif argument == "prior_prob":
            value = _prior_prob(cfg, value, default, name)
        arguments[argument] = value
    if "frequencies" in inspect.signature(loss_class).parameters:
        arguments["frequencies"] = _frequencies(cfg)
    return arguments


def _refuse_ignored_keys(cfg, name: str) -> None:
    """The keys of the original project stand for one of the loss's own node, which must be there."""
    losses = cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS
    for old, own in (("LAMBDA", "TAIL"), ("PRIOR_PROB", "PRIOR_PROB")):
        value = cfg.MODEL.ROI_HEADS[old]
        if value is not None and own not in losses[name]:
            able = sorted(other for other, node in losses.items() if isinstance(node, dict) and own in node)
            raise InputError(
                f"MODEL.ROI_HEADS.{old} is {value}, but {name} has no {own} and would ignore it: drop it, or choose a "
                f"loss that has one: {', '.join(able)}"
            )


def tail_rule(cfg, loss_class: type) -> TailRule | None:
    """The rule by which ``loss_class`` selects its tail, None where it has none."""
    node = cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS[loss_class.__name__]
    for argument, default in defaults(loss_class).items():
        if isinstance(default, TailRule):
            return _tail_rule(cfg, node[argument.upper()], loss_class.__name__)
    return None


def _frequencies(cfg):
    """Counts, or the error that says why there are none: a model that only scores does without."""
    try:
        return ClassFrequencies.from_config(cfg)
    except FrequenciesNotFound as error:
        return error


def _tail_rule(cfg, node, name: str) -> TailRule:
    lambda_, old = node.LAMBDA, cfg.MODEL.ROI_HEADS.LAMBDA
    if None not in (lambda_, old) and lambda_ != old:
        raise InputError(
            f"MODEL.ROI_HEADS.LAMBDA is {old} but {NODE}.{name}.TAIL.LAMBDA is {lambda_}: keep one of them"
        )
    return TailRule(
        lambda_=old if lambda_ is None else lambda_,
        max_image_count=node.MAX_IMAGE_COUNT,
        groups=node.GROUPS,
    )


def _prior_prob(cfg, value: float, default: float, name: str) -> float:
    old = cfg.MODEL.ROI_HEADS.PRIOR_PROB
    if old is None:
        return value
    if value not in (default, old):
        raise InputError(
            f"MODEL.ROI_HEADS.PRIOR_PROB is {old} but {NODE}.{name}.PRIOR_PROB is {value}: keep one of them"
        )
    return old
