"""Checkpoints that Detectron2 has trained with USE_SIGMOID_CE and USE_FED_LOSS are FederatedLoss's, bit for bit."""

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer

from eql_d2.engine import LongTailCheckpointer, Trainer

KEY = "MODEL.ROI_BOX_HEAD"


@pytest.mark.parametrize("head", ["StandardROIHeads", "CascadeROIHeads"])
def test_the_same_detections(tiny_cfg, tmp_path, head):
    """With LVIS's 1203 categories: there the stock classifier's further row changes no bit of the others' logits."""
    common = ("MODEL.ROI_HEADS.NUM_CLASSES", 1203, f"{KEY}.CLS_AGNOSTIC_BBOX_REG", True)
    common += ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.55, f"{KEY}.CLS_LOSS.COUNTS_FILE", "")
    common += ("DATASETS.TRAIN", ("lvis_v1_train",))  # the package has its counts
    stock = Trainer.build_model(tiny_cfg(*common, "MODEL.ROI_HEADS.NAME", head, f"{KEY}.USE_SIGMOID_CE", True)).eval()
    for module in stock.modules():  # the scores of a trained classifier are not all alike
        if hasattr(module, "cls_score"):
            torch.nn.init.normal_(module.cls_score.weight, std=0.03)
    DetectionCheckpointer(stock, str(tmp_path)).save("zoo")

    ours_head = {"StandardROIHeads": "LongTailROIHeads", "CascadeROIHeads": "LongTailCascadeROIHeads"}[head]
    cfg = tiny_cfg(*common, "MODEL.ROI_HEADS.NAME", ours_head, f"{KEY}.CLS_LOSS.NAME", "FederatedLoss")
    ours = Trainer.build_model(cfg).eval()
    LongTailCheckpointer(ours).load(str(tmp_path / "zoo.pth"))

    images = [{"image": torch.rand(3, 96, 96) * 255, "height": 96, "width": 96} for _ in range(2)]
    with torch.no_grad():
        pairs = zip(stock(images), ours(images), strict=True)
    for theirs, mine in ((a["instances"], b["instances"]) for a, b in pairs):
        assert len(theirs) == len(mine) > 0
        assert torch.equal(theirs.scores, mine.scores) and torch.equal(theirs.pred_classes, mine.pred_classes)
        assert torch.equal(theirs.pred_boxes.tensor, mine.pred_boxes.tensor)
