"""Tiny models of the three ROI-head topologies, and a batch for them."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

TOPOLOGIES = {
    "standard": ("LongTailROIHeads", []),
    "cascade": ("LongTailCascadeROIHeads", []),
    "res5": (
        "LongTailRes5ROIHeads",
        [
            "MODEL.BACKBONE.NAME",
            "build_resnet_backbone",
            "MODEL.RESNETS.OUT_FEATURES",
            ["res4"],
            "MODEL.RESNETS.STEM_OUT_CHANNELS",
            8,
            "MODEL.RESNETS.RES2_OUT_CHANNELS",
            8,
            "MODEL.RESNETS.WIDTH_PER_GROUP",
            4,
            "MODEL.RPN.IN_FEATURES",
            ["res4"],
            "MODEL.ROI_HEADS.IN_FEATURES",
            ["res4"],
        ],
    ),
}


@pytest.fixture(params=TOPOLOGIES)
def topology(request):
    """(name of the generic head, overrides that it needs)."""
    return TOPOLOGIES[request.param]


@pytest.fixture
def batched_inputs():
    """Two images of 96 px: one with objects of the classes 0, 3 and 6 (the last), one without any."""
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for boxes, classes in (
        ([[4, 4, 40, 40], [50, 8, 90, 44], [20, 52, 60, 92]], [0, 3, 6]),
        ([], []),
    ):
        instances = Instances((96, 96))
        instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        image = torch.randint(0, 256, (3, 96, 96), generator=generator).float()
        inputs.append({"image": image, "instances": instances, "height": 96, "width": 96})
    return inputs
