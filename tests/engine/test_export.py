import pytest
import torch
from detectron2.modeling import build_model

from eql_d2.engine.export import detect, trace_detector


@pytest.mark.parametrize("topology", ["LongTailROIHeads", "LongTailCascadeROIHeads"])
@pytest.mark.parametrize("mask", [False, True])
def test_traced_detector_gives_equal_outputs(tiny_cfg, tmp_path, topology, mask):
    """Also for an image of another size, and with another number of candidates for NMS."""
    cfg = tiny_cfg(
        *("MODEL.ROI_HEADS.NAME", topology, "MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", "EqualizationLoss"),
        *("MODEL.MASK_ON", mask, "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
        *("TEST.DETECTIONS_PER_IMAGE", 20),
    )
    model = build_model(cfg).eval()
    torch.nn.init.normal_(model.proposal_generator.rpn_head.objectness_logits.weight)
    images = [torch.rand(3, *size) * 255 for size in ((96, 128), (96, 128), (64, 80))]
    traced = trace_detector(model, images[0])
    path = str(tmp_path / "model.ts")
    torch.jit.save(traced, path)
    loaded = torch.jit.load(path)
    for image in images:
        expected, got = detect(model, image), loaded(image)
        assert len(expected) == (4 if mask else 3) and len(expected[0]) == 20
        for a, b in zip(expected, got, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
