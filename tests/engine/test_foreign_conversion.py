"""Weights of mmdetection, eqlv2, BAGS and Seesaw: every name has its place, and the heads score by their formulas."""

import json

import pytest
import torch
import torchvision
from detectron2.modeling import build_model

from eql_d2 import ClassFrequencies, get_config_file
from eql_d2.cli import main
from eql_d2.engine import LongTailCheckpointer, load_config
from eql_d2.engine.checkpoint import read_state_dict
from eql_d2.engine.foreign_weights import convert
from eql_d2.errors import InputError
from eql_d2.losses import BalancedGroupSoftmaxLoss, EqualizationLossV2, SeesawLoss, SoftmaxCrossEntropy

K, D, R = 7, 1024, 5
COUNTS = [5, 2000, 50, 9, 300, 10, 1000]  # objects: groups 1, 4, 2, 1, 3, 2, 4
MEMBERS = [[0, 3], [2, 5], [4], [1, 6]]
FREQUENCIES = ClassFrequencies(image_count=COUNTS, instance_count=COUNTS, num_images=2000)


def mask_rcnn(logits, legacy=False):
    """mmdetection's Mask R-CNN R-50 of K categories with random weights, by its names and shapes."""
    resnet = torchvision.models.resnet50(weights=None).state_dict()
    weights = {f"backbone.{name}": value for name, value in resnet.items() if not name.startswith("fc.")}
    of_classes = K + 1 if legacy else K
    shapes = {"rpn_head.rpn_conv": (256, 256, 3, 3), "rpn_head.rpn_cls": (3, 256, 1, 1)}
    shapes["rpn_head.rpn_reg"] = (12, 256, 1, 1)
    for i, channels in enumerate((256, 512, 1024, 2048)):
        shapes[f"neck.lateral_convs.{i}.conv"] = (256, channels, 1, 1)
        shapes[f"neck.fpn_convs.{i}.conv"] = (256, 256, 3, 3)
    head = {"bbox_head.shared_fcs.0": (D, 256 * 49), "bbox_head.shared_fcs.1": (D, D)}
    head |= {"bbox_head.fc_cls": (logits, D), "bbox_head.fc_reg": (4 * of_classes, D)}
    head |= {f"mask_head.convs.{i}.conv": (256, 256, 3, 3) for i in range(4)}
    head |= {"mask_head.upsample": (256, 256, 2, 2), "mask_head.conv_logits": (of_classes, 256, 1, 1)}
    shapes |= {name if legacy else f"roi_head.{name}": shape for name, shape in head.items()}
    for name, shape in shapes.items():
        weights[f"{name}.weight"] = torch.randn(shape) * 0.01
        weights[f"{name}.bias"] = torch.randn(shape[0])
    return weights


@pytest.fixture(scope="module")
def model():
    """Detectron2's Mask R-CNN R-50 of K categories."""
    keys = ["MODEL.DEVICE", "cpu", "MODEL.MASK_ON", True, "MODEL.ROI_HEADS.NUM_CLASSES", K]
    keys += ["MODEL.ROI_HEADS.NAME", "LongTailROIHeads", "MODEL.RESNETS.STRIDE_IN_1X1", False]
    return build_model(load_config(get_config_file("Base-RCNN-FPN.yaml"), keys)).eval()


def test_every_tensor_has_its_place(model, tmp_path, capsys):
    """The whole model loads, and its backbone gives the features of torchvision's, whose names mmdetection has."""
    theirs = mask_rcnn(K + 1)
    torch.save({"meta": {"epoch": 12}, "state_dict": theirs}, tmp_path / "theirs.pth")
    assert main(["convert", str(tmp_path / "theirs.pth"), str(tmp_path / "ours.pth")]) == 0
    assert "SoftmaxCrossEntropy or EqualizationLossV2" in capsys.readouterr().out
    converted = read_state_dict(str(tmp_path / "ours.pth"))
    expected = {name: value.shape for name, value in model.state_dict().items() if "cell_anchors" not in name}
    expected = {name: shape for name, shape in expected.items() if not name.startswith("pixel_")}
    assert {name: value.shape for name, value in converted.items()} == expected
    LongTailCheckpointer(model).resume_or_load(str(tmp_path / "ours.pth"), resume=False)
    resnet = torchvision.models.resnet50(weights=None).eval()
    resnet.load_state_dict({k.removeprefix("backbone."): v for k, v in theirs.items()}, strict=False)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(image))))
        ours = model.backbone.bottom_up(image)
        for i in range(1, 5):
            x = getattr(resnet, f"layer{i}")(x)
            torch.testing.assert_close(ours[f"res{i + 1}"], x, rtol=1e-4, atol=1e-4)


def scores_of_ours(weights, loss, features, **kwargs):
    converted = convert(weights, **kwargs)
    head = {n.removeprefix("roi_heads.box_predictor."): v for n, v in converted.weights.items()}
    assert type(loss).__name__ in converted.losses and converted.num_classes == K
    return loss.probs(features @ head["cls_score.weight"].T + head["cls_score.bias"])


def logits_of_theirs(weights, features):
    prefix = next(name for name in weights if name.endswith("fc_cls.weight")).removesuffix("weight")
    return features @ weights[f"{prefix}weight"].T + weights[f"{prefix}bias"]


def only_the_head(weights):
    """Without what takes time to look at."""
    return {name: value for name, value in weights.items() if "fc_" in name or "conv_logits" in name}


@pytest.fixture
def features():
    return torch.randn(R, D)


def test_a_resnet_of_torchvision(model, tmp_path, capsys):
    """And of timm, which has the same names; a training starts from it."""
    theirs = torchvision.models.resnet50(weights=None).state_dict()
    torch.save(theirs, tmp_path / "theirs.pth")
    assert main(["convert", str(tmp_path / "theirs.pth"), str(tmp_path / "ours.pth")]) == 0
    assert "MODEL.RESNETS.STRIDE_IN_1X1 False MODEL.WEIGHTS" in capsys.readouterr().out
    converted = read_state_dict(str(tmp_path / "ours.pth"))
    backbone = {f"backbone.bottom_up.{name}": value for name, value in model.backbone.bottom_up.state_dict().items()}
    assert {name: value.shape for name, value in converted.items()} == {k: v.shape for k, v in backbone.items()}
    with pytest.raises(InputError, match=r"not the weights of a plain ResNet: 'layer1\.0\.se"):
        convert({**theirs, "layer1.0.se.fc1.weight": torch.zeros(1)})


def test_eql_v2(features):
    theirs = only_the_head(mask_rcnn(K + 1))
    p = logits_of_theirs(theirs, features).sigmoid()
    scores = scores_of_ours(theirs, EqualizationLossV2(K), features)
    for i in range(R):
        for j in range(K):
            assert scores[i, j].item() == pytest.approx((p[i, j] * (1 - p[i, K])).item(), rel=1e-5)


def test_seesaw(features):
    theirs = only_the_head(mask_rcnn(K + 2))
    z = logits_of_theirs(theirs, features)
    scores = scores_of_ours(theirs, SeesawLoss(K), features)
    for i in range(R):
        is_object = z[i, K].exp() / (z[i, K].exp() + z[i, K + 1].exp())
        for j in range(K):
            expected = z[i, j].exp() / z[i, :K].exp().sum() * is_object
            assert scores[i, j].item() == pytest.approx(expected.item(), rel=1e-4)


def test_softmax_of_mmdetection_1(features):
    """Background comes first there, also in boxes and masks."""
    theirs = only_the_head(mask_rcnn(K + 1, legacy=True))
    p = logits_of_theirs(theirs, features).softmax(dim=1)
    torch.testing.assert_close(scores_of_ours(theirs, SoftmaxCrossEntropy(K), features), p[:, [*range(1, K + 1), 0]])
    ours = convert(theirs).weights
    assert torch.equal(ours["roi_heads.box_predictor.bbox_pred.weight"], theirs["bbox_head.fc_reg.weight"][4:])
    assert torch.equal(ours["roi_heads.mask_head.predictor.bias"], theirs["mask_head.conv_logits.bias"][1:])


@pytest.mark.parametrize("legacy", [True, False])
def test_bags(features, legacy):
    """The authors' columns (legacy), and those of eqlv2's GroupSoftmax, cut group by group as they stand."""
    theirs = only_the_head(mask_rcnn(K + 6, legacy))
    z = logits_of_theirs(theirs, features)
    parts = z.split([2, 3, 3, 2, 3] if legacy else [3, 3, 2, 3, 2], dim=1)
    of_background, of_groups = (parts[0], parts[1:]) if legacy else (parts[4], parts[:4])
    pair = of_background.softmax(dim=1)
    is_object, background = (pair[:, 1], pair[:, 0]) if legacy else (pair[:, 0], pair[:, 1])
    loss = BalancedGroupSoftmaxLoss(K, frequencies=FREQUENCIES)
    scores = scores_of_ours(theirs, loss, features, frequencies=FREQUENCIES)
    torch.testing.assert_close(scores[:, K], background)
    for members, logits in zip(MEMBERS, of_groups):
        p = logits.softmax(dim=1)
        for place, category in enumerate(members, 1):  # "others" come first
            torch.testing.assert_close(scores[:, category], p[:, place] * is_object)
    group = convert(theirs, frequencies=FREQUENCIES).weights["roi_heads.box_predictor.cls_loss.group"]
    assert torch.equal(group, loss.group)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda w: w | {"roi_head.bbox_head.0.fc_cls.weight": torch.ones(1)}, "unknown are 1 names.*Cascades"),
        (lambda w: {"neck.lateral_convs.0.conv.weight": torch.ones(1)}, "no fc_cls"),
        (lambda w: w | {"roi_head.bbox_head.fc_cls.weight": torch.ones(K + 4, D)}, "has 11 rows.*7 categories"),
        (lambda w: w | {"roi_head.bbox_head.fc_cls.weight": torch.ones(K + 6, D)}, "give --counts"),
    ],
)
def test_what_cannot_be_converted(edit, message):
    with pytest.raises(InputError, match=message):
        convert(edit(only_the_head(mask_rcnn(K + 1))))


def test_the_command_is_one_line_where_the_file_is_none(tmp_path, capsys):
    (tmp_path / "a.pth").write_text(json.dumps({}))
    torch.save([1, 2], tmp_path / "b.pth")
    for name, says in (("a", "damaged|plain Python"), ("b", "holds no weights"), ("c", "no such file")):
        assert main(["convert", str(tmp_path / f"{name}.pth"), str(tmp_path / "out.pth")]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and pytest.importorskip("re").search(says, error) and "weights_only" not in error
