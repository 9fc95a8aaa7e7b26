"""Weights of mmdetection's Faster and Mask R-CNN, and of the projects built on it, as those of Detectron2's models.

And of a ResNet of torchvision or timm, whose names mmdetection's backbone has.

By name, and for the layers that have a part for each class by the place of the parts:

======================================== ==================================== =====================================
logits (rows of `fc_cls`)                theirs                               ours
======================================== ==================================== =====================================
K (EQL, sigmoid losses)                  categories                           the same
K + 1 (softmax, EQL v2)                  categories, background               the same
K + 2 (Seesaw)                           categories, object, background       the same
K + 1 + G (BAGS), mmdetection 2          of each group "others", categories;  categories, background, "others" of
                                         last object, background              {background, object} and of each group
K + 1, mmdetection 1                     background, categories               categories, background
K + 1 + G (BAGS), mmdetection 1          background, object; of each group    as above
                                         "others", categories
======================================== ==================================== =====================================

mmdetection 1 also has a part for background in `fc_reg` and in the masks, which comes first, and is left out.
"""

import re
from dataclasses import dataclass

import torch

from eql_d2.data.frequencies import ClassFrequencies
from eql_d2.errors import InputError

BOX_HEAD, MASK_HEAD = "roi_heads.box_predictor", "roi_heads.mask_head"
# Their name, as a pattern of the whole, and ours; {n} in the latter is the first number of the former, raised by one.
NAMES = [
    (r"backbone\.conv1\.(\w+)", r"backbone.bottom_up.stem.conv1.\1"),
    (r"backbone\.bn1\.(\w+)", r"backbone.bottom_up.stem.conv1.norm.\1"),
    (r"backbone\.layer(\d)\.(\d+)\.conv(\d)\.(\w+)", r"backbone.bottom_up.res{n}.\2.conv\3.\4"),
    (r"backbone\.layer(\d)\.(\d+)\.bn(\d)\.(\w+)", r"backbone.bottom_up.res{n}.\2.conv\3.norm.\4"),
    (r"backbone\.layer(\d)\.(\d+)\.downsample\.0\.(\w+)", r"backbone.bottom_up.res{n}.\2.shortcut.\3"),
    (r"backbone\.layer(\d)\.(\d+)\.downsample\.1\.(\w+)", r"backbone.bottom_up.res{n}.\2.shortcut.norm.\3"),
    (r"neck\.lateral_convs\.(\d)\.conv\.(\w+)", r"backbone.fpn_lateral{n}.\2"),
    (r"neck\.fpn_convs\.(\d)\.conv\.(\w+)", r"backbone.fpn_output{n}.\2"),
    (r"rpn_head\.rpn_conv\.(\w+)", r"proposal_generator.rpn_head.conv.\1"),
    (r"rpn_head\.rpn_cls\.(\w+)", r"proposal_generator.rpn_head.objectness_logits.\1"),
    (r"rpn_head\.rpn_reg\.(\w+)", r"proposal_generator.rpn_head.anchor_deltas.\1"),
    (r"bbox_head\.shared_fcs\.(\d)\.(\w+)", r"roi_heads.box_head.fc{n}.\2"),
    (r"bbox_head\.fc_cls\.(\w+)", rf"{BOX_HEAD}.cls_score.\1"),
    (r"bbox_head\.fc_reg\.(\w+)", rf"{BOX_HEAD}.bbox_pred.\1"),
    (r"mask_head\.convs\.(\d)\.conv\.(\w+)", rf"{MASK_HEAD}.mask_fcn{{n}}.\2"),
    (r"mask_head\.upsample\.(\w+)", rf"{MASK_HEAD}.deconv.\1"),
    (r"mask_head\.conv_logits\.(\w+)", rf"{MASK_HEAD}.predictor.\1"),
]
# Levels of the FPN are counted from 2 in Detectron2, stages of a ResNet and layers from 1.
FIRST = {"neck": 2}
COMMON_KEYS = (
    "INPUT.FORMAT RGB MODEL.PIXEL_MEAN '[123.675,116.28,103.53]' MODEL.PIXEL_STD '[58.395,57.12,57.375]' "
    "MODEL.RESNETS.STRIDE_IN_1X1 False"
)
LEGACY_KEYS = "MODEL.ROI_BOX_HEAD.POOLER_TYPE ROIAlign MODEL.ROI_MASK_HEAD.POOLER_TYPE ROIAlign"


@dataclass(frozen=True)
class Converted:
    """
    Args:
        weights: by our names.
        num_classes: K; None of a backbone alone.
        losses: those of ours that the classifier's width may be of; () of a backbone.
        keys: of the config that the weights need.
    """

    weights: dict[str, torch.Tensor]
    num_classes: int | None
    losses: tuple[str, ...]
    keys: str


def convert(
    weights: dict[str, torch.Tensor],
    num_classes: int | None = None,
    frequencies: ClassFrequencies | None = None,
    bounds: tuple[int, ...] = (10, 100, 1000),
) -> Converted:
    """
    Args:
        weights: by mmdetection's names.
        num_classes: K; None where `fc_reg` or the mask head says so.
        frequencies: counts of the training set, by which BAGS groups its categories.
        bounds: of BAGS' groups, in objects.
    """
    weights = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    if "layer1.0.conv1.weight" in weights:
        return backbone(weights)
    legacy = any(name.startswith("bbox_head.") for name in weights)  # mmdetection 1 has no roi_head
    names = {name: our_name(name.removeprefix("roi_head.")) for name in weights}
    ours = {new: weights[name] for name, new in names.items() if new}
    unknown = [name for name, new in names.items() if new is None]
    if unknown or f"{BOX_HEAD}.cls_score.weight" not in ours:
        raise InputError(
            f"these are not the weights of mmdetection's Faster or Mask R-CNN with a ResNet and FPN: "
            f"{f'unknown are {len(unknown)} names, {unknown[0]!r} first' if unknown else 'there is no fc_cls'}. "
            f"Cascades and other heads are not converted"
        )
    K = num_classes or classes_of(ours, legacy)
    drop_background(ours, K)
    width = len(ours[f"{BOX_HEAD}.cls_score.weight"])
    order, losses = logit_order(width, K, legacy, frequencies, bounds)
    for part in ("weight", "bias"):
        ours[f"{BOX_HEAD}.cls_score.{part}"] = ours[f"{BOX_HEAD}.cls_score.{part}"][order]
    if losses == ("BalancedGroupSoftmaxLoss",):
        ours[f"{BOX_HEAD}.cls_loss.group"] = group_of_each(frequencies, bounds)  # type: ignore[arg-type]
    keys = f"MODEL.ROI_HEADS.NAME LongTailROIHeads MODEL.ROI_HEADS.NUM_CLASSES {K} {COMMON_KEYS}"
    return Converted(ours, K, losses, f"{keys} {LEGACY_KEYS}" if legacy else keys)


def backbone(weights: dict[str, torch.Tensor]) -> Converted:
    """A ResNet of torchvision or timm, without its classifier of whole images."""
    names = {name: our_name(f"backbone.{name}") for name in weights if not name.startswith("fc.")}
    unknown = [name for name, new in names.items() if new is None]
    if unknown:
        raise InputError(f"these are not the weights of a plain ResNet: {unknown[0]!r} has no place in Detectron2's")
    return Converted({new: weights[name] for name, new in names.items() if new}, None, (), COMMON_KEYS)


def our_name(name: str) -> str | None:
    """Detectron2's name of a parameter; None for one that no rule is for."""
    for pattern, ours in NAMES:
        match = re.fullmatch(pattern, name)
        if match:
            number = int(match[1]) + FIRST.get(name.split(".")[0], 1) if "{n}" in ours else 0
            return match.expand(ours.replace("{n}", str(number)))
    return None


def classes_of(weights: dict[str, torch.Tensor], legacy: bool) -> int:
    """K, by the layers that have a part for each category."""
    rows = len(weights[f"{BOX_HEAD}.bbox_pred.weight"]) // 4 if f"{BOX_HEAD}.bbox_pred.weight" in weights else 1
    if rows == 1:
        rows = len(weights.get(f"{MASK_HEAD}.predictor.weight", "x"))
    if rows == 1:
        raise InputError("the boxes are class-agnostic and there are no masks by class: give --num-classes")
    return rows - 1 if legacy else rows


def drop_background(weights: dict[str, torch.Tensor], K: int) -> None:
    """Take the part of background, the first, out of boxes and masks that have one, in place."""
    for name, rows in (("box_predictor.bbox_pred", 4), ("mask_head.predictor", 1)):
        for part in ("weight", "bias"):
            value = weights.get(f"roi_heads.{name}.{part}")
            if value is not None and len(value) == rows * (K + 1):
                weights[f"roi_heads.{name}.{part}"] = value[rows:]


def logit_order(width: int, K: int, legacy: bool, frequencies, bounds) -> tuple[torch.Tensor, tuple[str, ...]]:
    """Which of their logits is each of ours, and the losses that have so many."""
    same = torch.arange(width)
    if width == K:
        return same, ("EqualizationLoss", "SigmoidCrossEntropy")
    if width == K + 1:
        return (same.roll(-1) if legacy else same), ("SoftmaxCrossEntropy", "EqualizationLossV2")
    if width == K + 2 and not legacy:
        return same, ("SeesawLoss",)
    groups = len(bounds) + 2
    if width != K + 1 + groups:
        raise InputError(
            f"fc_cls has {width} rows, and there are {K} categories: expected {K}, {K + 1}, {K + 2} or, of BAGS, "
            f"{K + 1 + groups}. Give --num-classes if there are others"
        )
    if frequencies is None:
        raise InputError(
            "fc_cls has the width of BAGS, whose groups go by counts: give --counts, such as lvis_v0.5_train"
        )
    if len(frequencies) != K:
        raise InputError(f"--counts has {len(frequencies)} categories, the weights {K}")
    return bags_order(group_of_each(frequencies, bounds), groups, legacy), ("BalancedGroupSoftmaxLoss",)


def group_of_each(frequencies: ClassFrequencies, bounds: tuple[int, ...]) -> torch.Tensor:
    """(K + 1,) the group of each category, from 1, by its number of objects; 0 for background."""
    counts = frequencies.require_instance_count()
    groups = 1 + torch.bucketize(counts, torch.tensor(bounds), right=True)
    return torch.cat([groups, groups.new_zeros(1)])


def bags_order(group: torch.Tensor, groups: int, legacy: bool) -> torch.Tensor:
    """(K + 1 + G,) of each of our logits the place of theirs."""
    K = len(group) - 1
    first = [K, K + 1] if legacy else [K + 1, K]  # background and object, in the order of their columns
    theirs = first if legacy else []
    for g in range(1, groups):
        theirs = [*theirs, K + 1 + g, *(group[:-1] == g).nonzero()[:, 0].tolist()]
    return torch.tensor(theirs if legacy else [*theirs, *first]).argsort()
