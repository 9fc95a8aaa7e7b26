"""Torchvision's detectors with our losses, against torchvision itself where the loss is its own."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign

from eql_d2 import ClassFrequencies
from eql_d2.errors import InputError
from eql_d2.losses import (
    EqualizationLoss,
    EqualizationLossV2,
    GumbelLoss,
    SeesawLoss,
    SigmoidCrossEntropy,
    SigmoidFocalLoss,
    SoftmaxCrossEntropy,
)
from eql_d2.modeling import long_tail

K = 5


def backbone():
    layer = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8), nn.ReLU())
    layer.out_channels = 8
    return layer


SMALL = {"min_size": 64, "max_size": 64}


def roi_model(detector=FasterRCNN, **arguments):
    torch.manual_seed(0)
    if detector is MaskRCNN:
        arguments.update(mask_roi_pool=MultiScaleRoIAlign(["0"], 4, 2), box_detections_per_img=4)
    return detector(
        backbone(),
        num_classes=K + 1,
        rpn_anchor_generator=AnchorGenerator(((16, 32),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 4, 2),
        box_batch_size_per_image=16,
        **SMALL,
        **arguments,
    )


def retinanet(num_classes=K, **arguments):
    torch.manual_seed(0)
    anchors = AnchorGenerator(((16, 24),), ((1.0,),))
    return RetinaNet(backbone(), num_classes, anchor_generator=anchors, **SMALL, **arguments)


def batch(labels=(1, 5, 3)):
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 64, 64, generator=generator) for _ in range(2)]
    boxes = torch.tensor([[4.0, 4, 22, 22], [30, 30, 60, 58], [10, 40, 30, 60]])
    targets = [
        {"boxes": boxes[:2], "labels": torch.tensor(labels[:2])},
        {"boxes": boxes[2:], "labels": torch.tensor(labels[2:])},
    ]
    for target in targets:
        target["masks"] = torch.ones(len(target["boxes"]), 64, 64, dtype=torch.uint8)
    return images, targets


def losses_of(model, seed=0):
    torch.manual_seed(seed)
    images, targets = batch()
    return model.train()(images, copy.deepcopy(targets))


@pytest.mark.parametrize("detector", [FasterRCNN, MaskRCNN])
def test_softmax_is_torchvisions_own_loss_and_detections(detector):
    stock = roi_model(detector, box_score_thresh=0.15)
    nn.init.normal_(stock.roi_heads.box_predictor.cls_score.weight, std=0.3)
    nn.init.normal_(stock.roi_heads.box_predictor.cls_score.bias)
    ours = copy.deepcopy(stock)
    assert long_tail(ours, SoftmaxCrossEntropy(K)) is ours
    expected, got = losses_of(stock), losses_of(ours)
    assert got.keys() == expected.keys()
    for name, loss in got.items():
        torch.testing.assert_close(loss, expected[name])
    sum(got.values()).backward()
    images, _ = batch()
    for a, b in zip(ours.eval()(images), stock.eval()(images), strict=True):
        assert len(a["scores"]) > 0
        for name in ("boxes", "labels", "scores"):
            torch.testing.assert_close(a[name], b[name])


def test_a_sigmoid_loss_sees_the_categories_from_0_and_background_last(monkeypatch):
    model, loss = long_tail(roi_model(), SigmoidCrossEntropy(K)), None
    seen = []
    monkeypatch.setattr(model.roi_heads.cls_loss, "forward", lambda z, y: seen.append((z, y)) or z.sum())
    losses_of(model)
    ((logits, labels),) = seen
    assert logits.shape == (len(labels), K) and set(labels.tolist()) <= {0, 2, 4, K} and (labels == K).any()
    assert {0, 2, 4} & set(labels.tolist()) and loss is None
    assert (model.roi_heads.box_predictor.cls_score.bias.sigmoid() - 0.001).abs().max() < 1e-6


@pytest.mark.parametrize("loss", [SeesawLoss(K), EqualizationLossV2(K)])
def test_wider_classifiers_train_and_detect(loss):
    model = long_tail(roi_model(box_score_thresh=0.0), loss)
    assert model.roi_heads.box_predictor.cls_score.out_features == loss.num_logits
    sum(losses_of(model).values()).backward()
    detections = model.eval()(batch()[0])
    labels = torch.cat([d["labels"] for d in detections])
    assert len(labels) and labels.min() >= 1 and labels.max() <= K


def test_a_loss_is_replaced_by_another():
    model = long_tail(long_tail(roi_model(), SoftmaxCrossEntropy(K)), SigmoidFocalLoss(K))
    assert model.roi_heads.box_predictor.cls_score.out_features == K and losses_of(model)["loss_classifier"] > 0


def test_retinanet_with_focal_loss_is_torchvisions():
    stock = retinanet(K + 1)
    ours = long_tail(copy.deepcopy(stock), SigmoidFocalLoss(K + 1))
    expected, got = losses_of(stock), losses_of(ours)
    for name, loss in got.items():
        torch.testing.assert_close(loss, expected[name])
    gradients = []
    for model, losses in ((stock, expected), (ours, got)):
        sum(losses.values()).backward()
        gradients.append(model.head.classification_head.cls_logits.weight.grad)
    torch.testing.assert_close(*gradients)
    assert ours.eval()(batch()[0])[0].keys() == {"boxes", "scores", "labels"}


def test_retinanet_with_a_long_tailed_loss():
    frequencies = ClassFrequencies([0, 1, 5, 30, 200, 400], num_images=500)
    model = long_tail(retinanet(K + 1), EqualizationLoss(K + 1, frequencies=frequencies))
    assert losses_of(model)["classification"].isfinite()


class OwnHeads(type(roi_model().roi_heads)):
    pass


def test_what_is_refused():
    with pytest.raises(InputError, match=r"has 6 classes, the model 5: .* num_classes=6, background included"):
        long_tail(roi_model(), SoftmaxCrossEntropy(K + 1))
    with pytest.raises(InputError, match="RetinaNet has a column for each label from 0 to 5"):
        long_tail(retinanet(K + 1), SigmoidFocalLoss(K))
    with pytest.raises(InputError, match="SoftmaxCrossEntropy is no loss for torchvision's RetinaNet"):
        long_tail(retinanet(), SoftmaxCrossEntropy(K))
    with pytest.raises(InputError, match="EqualizationLossV2 does not: it has 6 logits for 5"):
        long_tail(retinanet(), EqualizationLossV2(K))
    with pytest.raises(InputError, match="GumbelLoss does not: .* other scores"):
        long_tail(retinanet(), GumbelLoss(K))
    with pytest.raises(InputError, match="serves torchvision's FasterRCNN.*; got Linear"):
        long_tail(nn.Linear(2, 2), SigmoidFocalLoss(K))
    with pytest.raises(InputError, match="takes a loss for a model of torchvision.*got a str"):
        long_tail(roi_model(), "EqualizationLoss")
    own = roi_model()
    own.roi_heads.__class__ = OwnHeads
    with pytest.raises(InputError, match="the model's is OwnHeads, whose own code would be lost"):
        long_tail(own, SigmoidFocalLoss(K))
