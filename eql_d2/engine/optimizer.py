"""Parts of the optimizer that YAML files and LazyConfigs share."""

from collections.abc import Callable

import torch
from detectron2.config import get_cfg
from detectron2.solver.build import maybe_add_gradient_clipping


def classifier_lr_factor(factor: float) -> Callable[[str], float]:
    """Learning-rate factor by parameter name: ``factor`` for the classifier layer, 1 for the others."""
    return lambda name: factor if ".cls_score." in name else 1.0


def clipped_sgd(params, clip_norm: float | None = None, **kwargs) -> torch.optim.Optimizer:
    """SGD that clips the gradient of each parameter to the norm ``clip_norm``, as `SOLVER.CLIP_GRADIENTS` does."""
    cfg = get_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = clip_norm is not None
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = clip_norm or 0.0
    return maybe_add_gradient_clipping(cfg, torch.optim.SGD)(params, foreach=True, **kwargs)
