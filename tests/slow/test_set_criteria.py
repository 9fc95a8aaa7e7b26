"""A DETR of transformers (docs/examples/transformers_detr.py) and a torchvision Faster R-CNN learn with our losses."""

import importlib.util
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torchvision.io import read_image
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from eql_d2 import ClassFrequencies
from eql_d2.losses import EqualizationLoss, EqualizedFocalLoss, SigmoidFocalLoss
from eql_d2.mini_lvis.datasets import register_mini_lvis
from eql_d2.mini_lvis.generator import MiniLVISSpec
from eql_d2.modeling import long_tail

pytestmark = pytest.mark.slow
K = 7


def tiny_detr():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], layer_type="basic", out_features=["stage4"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        num_labels=K,
        num_queries=12,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        auxiliary_loss=False,
    )
    return transformers.DetrForObjectDetection(config)


@pytest.mark.parametrize(
    "loss", [SigmoidFocalLoss(K), EqualizedFocalLoss(K), EqualizationLoss(K, frequencies=[1, 2, 5, 20, 100, 200, 300])]
)
def test_a_detr_of_transformers(loss):
    model = tiny_detr()
    path = Path(__file__).parents[2] / "docs" / "examples" / "transformers_detr.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.long_tailed_detr(model, loss).train()
    pixels = torch.rand(2, 3, 64, 64)
    labels = [
        {"class_labels": torch.tensor([0, 6]), "boxes": torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.3, 0.4]])},
        {"class_labels": torch.tensor([3]), "boxes": torch.tensor([[0.5, 0.5, 0.6, 0.4]])},
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    values = []
    for _ in range(25):
        output = model(pixel_values=pixels, labels=labels)
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(float(output.loss_dict["loss_ce"]))
    assert output.logits.shape == (2, 12, K)
    assert sum(values[-5:]) < 0.9 * sum(values[:5])
    if isinstance(loss, EqualizedFocalLoss):
        assert "criterion.cls_loss.focal_gradients.positive" in model.state_dict()


def test_a_faster_rcnn_of_torchvision_learns_mini_lvis(tmp_path):
    """Images and labels as anybody would read them; the loss falls, and what is found has the categories' labels."""
    name = "eql_d2_torchvision"
    register_mini_lvis(
        name, MiniLVISSpec(num_categories=K, num_train_images=40, num_val_images=6, min_val_images=2), tmp_path / "mini"
    )
    try:
        dicts = DatasetCatalog.get(f"{name}_train")
        frequencies = ClassFrequencies.from_dataset(f"{name}_train")
    finally:
        for split in ("train", "val"):
            DatasetCatalog.remove(f"{name}_{split}")
            MetadataCatalog.remove(f"{name}_{split}")
    torch.manual_seed(0)
    backbone = torch.nn.Sequential(
        torch.nn.Conv2d(3, 24, 5, stride=4, padding=2),
        torch.nn.ReLU(),
        torch.nn.Conv2d(24, 48, 3, stride=2, padding=1),
        torch.nn.ReLU(),
    )
    backbone.out_channels = 48
    model = FasterRCNN(
        backbone,
        num_classes=K + 1,
        min_size=128,
        max_size=128,
        rpn_anchor_generator=AnchorGenerator(((18, 30, 48),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 1),
        box_batch_size_per_image=32,
        box_score_thresh=0.001,
    )
    long_tail(model, EqualizationLoss(K, frequencies=frequencies, prior_prob=0.01)).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    values = []
    for step in range(120):
        batch = [dicts[(2 * step + i) % len(dicts)] for i in range(2)]
        losses = model([image_of(d) for d in batch], [target_of(d) for d in batch])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        values.append(float(losses["loss_classifier"]))
    assert sum(values[-20:]) < 0.8 * sum(values[:20])
    (found,) = model.eval()([image_of(dicts[0])])
    assert len(found["labels"]) and found["labels"].min() >= 1 and found["labels"].max() <= K


def image_of(record):
    return read_image(record["file_name"])[:3].float() / 255


def target_of(record):
    x0, y0, width, height = torch.tensor([a["bbox"] for a in record["annotations"]], dtype=torch.float32).t()
    return {
        "boxes": torch.stack([x0, y0, x0 + width, y0 + height], dim=1),
        "labels": torch.tensor([a["category_id"] + 1 for a in record["annotations"]]),
    }
