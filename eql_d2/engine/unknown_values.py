"""Values that Detectron2 does not know: what it raises while a run is built, said with the key and the nearest names.

They are looked for once something was raised, and by Detectron2 itself: a part of a person's own may take what it
likes, and its bugs keep their traceback.
"""

import functools
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import detectron2
from detectron2 import modeling
from detectron2.config import CfgNode
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY
from fvcore.common.registry import Registry

from eql_d2.data.samplers import TRAIN_SAMPLER_REGISTRY
from eql_d2.engine.ignored_keys import leaves
from eql_d2.errors import InputError, did_you_mean

RESNET_FEATURES = ("stem", "res2", "res3", "res4", "res5")
KNOWN: dict[str, Any] = {
    "MODEL.META_ARCHITECTURE": modeling.META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": modeling.BACKBONE_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": modeling.PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": modeling.ANCHOR_GENERATOR_REGISTRY,
    "MODEL.RPN.HEAD_NAME": RPN_HEAD_REGISTRY,
    "MODEL.ROI_HEADS.NAME": modeling.ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": modeling.ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": modeling.ROI_MASK_HEAD_REGISTRY,
    "MODEL.ROI_KEYPOINT_HEAD.NAME": modeling.ROI_KEYPOINT_HEAD_REGISTRY,
    "MODEL.RESNETS.DEPTH": (18, 34, 50, 101, 152),
    "MODEL.RESNETS.OUT_FEATURES": RESNET_FEATURES,
    "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIAlignV2", "ROIAlign", "ROIPool", "ROIAlignRotated"),
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": ("ROIAlignV2", "ROIAlign", "ROIPool", "ROIAlignRotated"),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
}
NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "LN")
OF_THE_BACKBONE = ("MODEL.RPN.IN_FEATURES", "MODEL.ROI_HEADS.IN_FEATURES", "MODEL.RETINANET.IN_FEATURES")


def explained(build: Callable) -> Callable:
    """``build(cfg, ...)``, with an InputError where Detectron2 fails on a value that is none of those it knows."""

    @functools.wraps(build)
    def explained_build(cfg, *args, **kwargs):
        try:
            return build(cfg, *args, **kwargs)
        except (KeyError, ValueError, AssertionError) as error:
            if isinstance(error, InputError) or not raised_by_detectron2(error):
                raise
            for key, value, known in unknown_values(cfg):
                raise unknown_value(key, value, known) from error
            raise

    return explained_build


def raised_by_detectron2(error: Exception) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    of_registry = frames[-1].filename.endswith("fvcore/common/registry.py")  # what asked it is the frame before
    return frames[-2 if of_registry else -1].filename.startswith(tuple(detectron2.__path__))


def unknown_values(cfg: CfgNode) -> Iterator[tuple[str, object, list]]:
    """(key, the first value that is not known, those that are), of the keys whose values are names."""
    known = {key: names(of_key) for key, of_key in KNOWN.items()}
    known["DATALOADER.SAMPLER_TRAIN"] += names(TRAIN_SAMPLER_REGISTRY)
    known["MODEL.FPN.IN_FEATURES"] = list(cfg.MODEL.RESNETS.OUT_FEATURES)
    values = dict(leaves(cfg))
    known.update({key: list(NORMS) for key, value in values.items() if key.endswith(".NORM") and value is not None})
    yield from of_keys(known, values)
    features = list(modeling.build_backbone(cfg).output_shape())  # which the keys before are for
    yield from of_keys(dict.fromkeys(OF_THE_BACKBONE, features), values)


def of_keys(known: dict[str, list], values: dict) -> Iterator[tuple[str, object, list]]:
    for key, of_key in known.items():
        value = values[key]
        for name in value if isinstance(value, (list, tuple)) else [value]:
            if name not in of_key:
                yield key, name, of_key


def names(known) -> list:
    return [name for name, _ in known] if isinstance(known, Registry) else list(known)


def unknown_value(key: str, value, known: list) -> InputError:
    is_part = key.endswith(("NAME", "ARCHITECTURE", "SAMPLER_TRAIN"))
    what = "which is not registered" if is_part else "which is not known"
    near = did_you_mean(str(value), map(str, known)) or f"; there are {', '.join(map(repr, sorted(known)))}"
    return InputError(
        f"{key} is {value!r}, {what}{near}{' (one of your own must be imported first)' if is_part else ''}"
    )
