"""Training of a part of a model, the rest of which stays as it is."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from eql_d2.errors import InputError, did_you_mean

KEY = "MODEL.FREEZE"


def freeze(model: nn.Module, patterns: Sequence[str]) -> nn.Module:
    """Take the modules and parameters that ``patterns`` name out of training. Returns the model.

    Their parameters need no gradient, and their batch norms normalise with what they learned before, also after
    ``model.train()``. To be called before the optimizer is built and DistributedDataParallel is put around the model.

    Args:
        patterns: shell-style patterns of names as in ``model.named_modules()`` and ``model.named_parameters()``, in
            which `*` stands for anything, dots included: "backbone", "roi_heads.box_head", "*.bbox_pred". A module is
            frozen with all that is in it.

    Raises:
        InputError: a pattern that matches nothing, with the names that there are; or nothing is left to train.
    """
    for pattern in patterns:
        require_match(model, pattern)
    for name, parameter in model.named_parameters():
        if is_named(name, patterns):
            parameter.requires_grad_(False)
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and is_named(name, patterns):
            module.register_forward_pre_hook(_stay_in_eval)
    if patterns and not any(p.requires_grad for p in model.parameters()):
        raise InputError(f"{KEY} {list(patterns)} freezes the whole model: nothing is left to train")
    return model


def require_match(model: nn.Module, pattern: str) -> None:
    """A ValueError with what there is if ``pattern`` matches no module and no parameter of the model."""
    modules = [name for name, _ in model.named_modules() if name]
    names = [*modules, *(name for name, _ in model.named_parameters())]
    if any(fnmatchcase(name, pattern) for name in names):
        return
    raise InputError(
        f"{KEY}: '{pattern}' matches no module and no parameter of the model"
        f"{did_you_mean(pattern, names) or '.'} The modules are "
        f"{[name for name in modules if name.count('.') < 2]} and those in them"
    )


def is_named(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern matches ``name`` or a module that it lies in."""
    parts = name.split(".")
    outer = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    return any(fnmatchcase(o, pattern) for o in outer for pattern in patterns)


def _stay_in_eval(module: nn.Module, _args: tuple) -> None:
    module.eval()
