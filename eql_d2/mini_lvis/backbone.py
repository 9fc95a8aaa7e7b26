"""The small ResNet of the MiniLVIS configs: trains on a CPU core in minutes."""

from collections.abc import Sequence

from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem

from eql_d2.engine.settings import detecting_head


@BACKBONE_REGISTRY.register()
def build_tiny_resnet_fpn_backbone(cfg, input_shape) -> FPN:
    """FPN on a ResNet with one BasicBlock a stage.

    Detectron2's own builder fixes ResNet-18's width (64 channels in res2); this one takes it from
    ``MODEL.RESNETS.RES2_OUT_CHANNELS``, doubles it from stage to stage, and ends with the last of ``OUT_FEATURES``.
    """
    resnets, norm = cfg.MODEL.RESNETS, cfg.MODEL.RESNETS.NORM
    width = resnets.STEM_OUT_CHANNELS
    stem = BasicStem(input_shape.channels, width, norm)
    stages = []
    last_stage = max(int(name[len("res") :]) for name in resnets.OUT_FEATURES)
    for i in range(last_stage - 1):
        out_width = resnets.RES2_OUT_CHANNELS * 2**i
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                num_blocks=1,
                stride_per_block=[1 if i == 0 else 2],
                in_channels=width,
                out_channels=out_width,
                norm=norm,
            )
        )
        width = out_width
    bottom_up = ResNet(stem, stages, out_features=resnets.OUT_FEATURES)
    fpn = FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
    head = detecting_head(cfg)
    proposing = cfg.MODEL.RPN.IN_FEATURES if head == "ROI_HEADS" else []
    return freeze_unread_levels(fpn, [*proposing, *cfg.MODEL[head].IN_FEATURES])


def freeze_unread_levels(fpn: FPN, read: Sequence[str]) -> FPN:
    """Freeze the output layers of the levels that no head reads, and return ``fpn``.

    They never get a gradient, which DistributedDataParallel must be told.

    Args:
        read: names of the levels that are read, as "p2".
    """
    for level in set(fpn.output_shape()) - set(read):
        for parameter in getattr(fpn, f"fpn_output{level[1:]}").parameters():
            parameter.requires_grad = False
    return fpn
