"""Our dense detectors against Detectron2's own, and the losses that they take."""

import copy
import math

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet, build_model
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from eql_d2 import CLS_LOSS_REGISTRY, ClassFrequencies
from eql_d2.errors import InputError
from eql_d2.losses import EqualizedFocalLoss, LateStart, SigmoidCrossEntropy, SigmoidFocalLoss, SoftmaxCrossEntropy
from eql_d2.modeling import LongTailFCOS, LongTailRetinaNet, long_tail
from eql_d2.modeling.calibration import NorCal
from eql_d2.modeling.dense import fits_dense

K = 7
COUNTS = ClassFrequencies([1, 9, 10, 11, 100, 101, 400], [1, 20, 10, 30, 150, 202, 900], num_images=1000)
LOSSES = sorted(name for name, cls in CLS_LOSS_REGISTRY if cls.__module__.startswith("eql_d2."))
SERVED = {
    "AdaptiveClassSuppressionLoss",
    "AsymmetricLoss",
    "BalancedSoftmaxLoss",
    "ClassBalancedLoss",
    "DropLoss",
    "EqualizationLoss",
    "EqualizationLossV2",
    "EqualizedFocalLoss",
    "FederatedLoss",
    "ForegroundClassificationBalanceLoss",
    "GumbelLoss",
    "SigmoidCrossEntropy",
    "SigmoidFocalLoss",
}


class TwoLevels(Backbone):
    """Strides of 8 and 16; features of 4 channels."""

    def __init__(self):
        super().__init__()
        self.p3, self.p4 = nn.Conv2d(3, 4, 8, stride=8), nn.Conv2d(3, 4, 16, stride=16)

    def forward(self, x):
        return {"p3": self.p3(x), "p4": self.p4(x)}

    def output_shape(self):
        return {"p3": ShapeSpec(channels=4, stride=8), "p4": ShapeSpec(channels=4, stride=16)}


def make(detector, seed=0, **arguments):
    """A detector of K classes; of the same seed the same weights."""
    torch.manual_seed(seed)
    backbone = TwoLevels()
    shapes = list(backbone.output_shape().values())
    common = {
        "backbone": backbone,
        "head_in_features": ["p3", "p4"],
        "num_classes": K,
        "pixel_mean": [120.0] * 3,
        "pixel_std": [60.0] * 3,
        "test_score_thresh": 1e-4,
        **arguments,
    }
    if issubclass(detector, FCOS):
        return detector(head=FCOSHead(input_shape=shapes, conv_dims=[4], num_classes=K), **common)
    return detector(
        head=RetinaNetHead(input_shape=shapes, num_classes=K, num_anchors=3, conv_dims=[4]),
        anchor_generator=DefaultAnchorGenerator(
            sizes=[[16, 24, 32], [32, 48, 64]], aspect_ratios=[1.0], strides=[8, 16]
        ),
        box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
        anchor_matcher=Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True),
        **common,
    )


def images(*numbers, seed=0):
    """Inputs with so many objects each, of sizes that some anchors are to ignore."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for n in numbers:
        corner = torch.rand(n, 2, generator=generator) * 60
        size = 12 + torch.rand(n, 2, generator=generator) * 30
        objects = Instances((96, 96), gt_boxes=Boxes(torch.cat([corner, corner + size], dim=1)))
        objects.gt_classes = torch.randint(0, K, (n,), generator=generator)
        batch.append({"image": torch.rand(3, 96, 96, generator=generator) * 255, "instances": objects})
    return batch


def step(model, batch):
    """Losses and gradients of one training step."""
    model.train().zero_grad()
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    return losses, {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same_step(ours, stock, batch):
    (losses, gradients), (stock_losses, stock_gradients) = step(ours, batch), step(stock, batch)
    assert losses.keys() == stock_losses.keys() and gradients.keys() == stock_gradients.keys()
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, stock_losses[name], rtol=1e-5, atol=1e-7)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, stock_gradients[name], rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


DETECTORS = [(LongTailRetinaNet, RetinaNet), (LongTailFCOS, FCOS)]


@pytest.mark.parametrize("ours, stock", DETECTORS)
def test_with_focal_loss_it_is_the_stock_detector(ours, stock):
    """Weights, losses and gradients of several steps, the moving average of the normalizer among them."""
    ours, stock = make(ours, cls_loss=SigmoidFocalLoss(K)), make(stock)
    for name, value in stock.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name
    for seed in range(3):
        assert_same_step(ours, stock, images(3, 0, 5, seed=seed))
    assert float(ours.loss_normalizer) == pytest.approx(stock.loss_normalizer)


@pytest.mark.parametrize("ours, stock", DETECTORS)
@pytest.mark.parametrize(
    "thresh, candidates, limit", [(1e-4, 1000, 50), (0.05, 40, 100), (0.5, 1000, 100), (0.9, 9, 5)]
)
def test_detections_are_the_stock_detectors(ours, stock, thresh, candidates, limit):
    settings = {"test_score_thresh": thresh, "test_topk_candidates": candidates, "max_detections_per_image": limit}
    ours, stock = make(ours, cls_loss=SigmoidFocalLoss(K), **settings), make(stock, **settings)
    ours.load_state_dict(stock.state_dict())  # which has no normalizer
    inputs = stock.preprocess_image([{"image": torch.zeros(3, 96, 96)}] * 2)
    features = [torch.zeros(2, 4, 12, 12), torch.zeros(2, 4, 6, 6)]
    for a, b in zip(*(model.forward_inference(inputs, features, predictions(stock)) for model in (ours, stock))):
        assert a.image_size == b.image_size and len(a) > 0
        same = (torch.equal(x, y) for x, y in zip(fields(a), fields(b), strict=True))
        assert all(same)


def predictions(model):
    """What a head returns: scores without ties, most of them low, and boxes of which some leave the image."""
    generator = torch.Generator().manual_seed(0)
    A = model.head.bbox_pred.out_channels // 4
    scores = (torch.randperm(2 * A * K * 180, generator=generator) + 0.5) / (2 * A * K * 180)
    levels = (scores**3).logit().split([2 * A * K * 144, 2 * A * K * 36])
    logits = [x.view(2, A * K, side, side) for x, side in zip(levels, (12, 6))]
    deltas, centerness = (
        [torch.rand(2, width, side, side, generator=generator) * 2 for side in (12, 6)] for width in (4 * A, 1)
    )
    return [logits, deltas, centerness] if hasattr(model.head, "ctrness") else [logits, deltas]


def fields(instances):
    return instances.pred_boxes.tensor, instances.scores, instances.pred_classes


def efl_by_loops(z, labels, gamma):
    """LOSSES.md 1.14: alpha_t (gamma_j / gamma) (1 - p_t)^gamma_j (-log p_t), and the sums of its gradients."""
    total, positive, negative = 0.0, [0.0] * K, [0.0] * K
    for row, label in zip(z.tolist(), labels.tolist()):
        if label < 0:
            continue
        for j, logit in enumerate(row):
            p_t = 1 / (1 + math.exp(-logit if j == label else logit))
            alpha_t, g = (0.25 if j == label else 0.75), gamma[j]
            total += alpha_t * (g / 2) * (1 - p_t) ** g * -math.log(p_t)
            slope = alpha_t * (g / 2) * (1 - p_t) ** g * (1 - p_t - g * p_t * math.log(p_t))
            (positive if j == label else negative)[j] += slope
    return total, positive, negative


def test_efl_is_its_formula(monkeypatch):
    """Two steps: gamma_j of the second comes from the gradients of the first; ignored anchors are in neither."""
    model = make(LongTailRetinaNet, cls_loss=EqualizedFocalLoss(K)).double()
    seen = {}

    def keep(pred_logits, gt_labels, normalizer):
        loss = LongTailRetinaNet.classification_loss(model, pred_logits, gt_labels, normalizer)
        z = torch.cat([x.flatten(1, -2) for x in pred_logits], dim=1).flatten(0, 1)
        seen.update(z=z, labels=gt_labels.flatten(), normalizer=float(normalizer))
        return loss

    monkeypatch.setattr(model, "classification_loss", keep)
    gamma = [2.0] * K
    batch = images(3, 4)
    for image in batch:
        image["image"] = image["image"].double()
    for _ in range(2):
        losses, _ = step(model, batch)
        assert (seen["labels"] == -1).any() and (seen["labels"] == K).any()
        total, positive, negative = efl_by_loops(seen["z"], seen["labels"], gamma)
        assert float(losses["loss_cls"]) == pytest.approx(total / seen["normalizer"], rel=1e-6)
        gamma = [2 + 8 * (1 - min(p / n, 1)) for p, n in zip(positive, negative)]
        assert model.cls_loss.category_gamma().tolist() == pytest.approx(gamma, rel=1e-6)


def test_ignored_anchors_never_reach_the_loss():
    model = make(LongTailRetinaNet, cls_loss=EqualizedFocalLoss(K))
    labels = torch.tensor([[0, -1, K, 3], [-1, -1, K, K]])
    logits = torch.randn(2, 4, K)
    spoilt = logits.clone()
    spoilt[labels == -1] = float("nan")
    spoilt.requires_grad_()
    losses = []
    for given in (logits, spoilt):
        model.cls_loss = EqualizedFocalLoss(K)
        losses.append(model.classification_loss([given[:, :1], given[:, 1:]], labels, 2.0))
    assert torch.equal(*losses)
    losses[1].backward()
    assert (spoilt.grad[labels == -1] == 0).all() and spoilt.grad.isfinite().all()


def build_loss(name):
    cls = CLS_LOSS_REGISTRY.get(name)
    try:
        return cls(K)
    except TypeError:
        return cls(K, frequencies=COUNTS)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_served_or_refused(name):
    loss = build_loss(name)
    if name not in SERVED:
        assert not fits_dense(loss)
        with pytest.raises(InputError, match=f"^{name} is no loss for LongTailRetinaNet: .* Choose a sigmoid loss by "):
            make(LongTailRetinaNet, cls_loss=loss)
        return
    model = make(LongTailRetinaNet, cls_loss=loss)
    assert model.head.cls_score.out_channels == 3 * loss.num_logits
    losses, gradients = step(model, images(2, 3))
    assert all(loss.isfinite() for loss in losses.values()) and gradients["head.cls_score.weight"].abs().sum() > 0
    with torch.no_grad():
        scores = model.scores(torch.full((1, loss.num_logits), loss.initial_bias))
    assert scores.shape == (1, K) and float(scores.max()) < 0.5
    assert len(model.eval()(images(1))[0]["instances"]) >= 0


def test_a_column_of_background_starts_high_and_the_others_from_the_stock_rows():
    stock, loss = make(RetinaNet), build_loss("EqualizationLossV2")
    ours = make(LongTailRetinaNet, cls_loss=loss)
    weight, bias = ours.head.cls_score.weight.unflatten(0, (3, K + 1)), ours.head.cls_score.bias.view(3, K + 1)
    assert torch.equal(weight[:, :K], stock.head.cls_score.weight.unflatten(0, (3, K)))
    assert (bias[:, :K].sigmoid() - 0.001).abs().max() < 1e-6 and (bias[:, K].sigmoid() - 0.999).abs().max() < 1e-6
    for name, value in stock.state_dict().items():
        assert "cls_score" in name or torch.equal(value, ours.state_dict()[name]), name


def test_what_does_not_fit():
    with pytest.raises(InputError, match="has 6 classes, LongTailRetinaNet 7"):
        make(LongTailRetinaNet, cls_loss=SigmoidFocalLoss(6))
    model = make(RetinaNet)
    model.head.cls_score = nn.Conv2d(4, 3 * K + 1, 3)
    with pytest.raises(InputError, match="has 22 outputs for 3 anchors a place, expected 3 x 7"):
        LongTailRetinaNet(**{**arguments_of(model), "cls_loss": SigmoidFocalLoss(K)})


def arguments_of(model):
    names = ("backbone", "head", "head_in_features", "anchor_generator", "box2box_transform", "anchor_matcher")
    return {**{name: getattr(model, name) for name in names}, "num_classes": K, "pixel_mean": [0.0], "pixel_std": [1.0]}


def test_calibration_lowers_the_frequent():
    loss = SigmoidCrossEntropy(K)
    model = make(LongTailRetinaNet, cls_loss=loss, calibration=NorCal(loss, COUNTS))
    scores = model.scores(torch.zeros(1, K))
    assert (scores[0].diff() < 0).all() and float(scores[0, 0]) == pytest.approx(0.5)


def test_it_starts_later():
    then = SigmoidFocalLoss(K)
    late = LateStart(then.plain(), then, start_iter=1)
    model = make(LongTailRetinaNet, cls_loss=late)
    plain = make(LongTailRetinaNet, cls_loss=SigmoidCrossEntropy(K, prior_prob=0.01))
    focal = make(LongTailRetinaNet, cls_loss=SigmoidFocalLoss(K))
    batch = images(2, 3)
    for expected in (plain, focal):
        expected.loss_normalizer = model.loss_normalizer.clone()
        assert float(step(model, batch)[0]["loss_cls"]) == pytest.approx(float(step(expected, batch)[0]["loss_cls"]))


@pytest.mark.parametrize("name, detector", [("retinanet", LongTailRetinaNet), ("fcos", LongTailFCOS)])
def test_a_lazy_model(name, detector):
    model = model_zoo.get_config(f"common/models/{name}.py").model
    stock = copy.deepcopy(model)
    model.num_classes = 3
    long_tail(model, loss=L(SigmoidCrossEntropy)(prior_prob=0.01))
    assert model._target_ is detector and "focal_loss_alpha" not in model
    stock.num_classes = 3
    assert model.head == stock.head
    model.backbone = L(TwoLevels)()
    model.head_in_features, model.head.input_shape = ["p3", "p4"], [ShapeSpec(channels=4)] * 2
    model.head.norm = ""
    if name == "retinanet":
        model.anchor_generator.sizes, model.anchor_generator.strides = model.anchor_generator.sizes[:2], [8, 16]
    built = instantiate(model)
    assert type(built) is detector and built.cls_loss.num_classes == 3


@pytest.mark.parametrize("architecture, section", [("LongTailRetinaNet", "RETINANET"), ("LongTailFCOS", "FCOS")])
def test_built_from_yaml(tiny_cfg, architecture, section):
    """The number of classes is that of the architecture's own section."""
    cfg = tiny_cfg("MODEL.META_ARCHITECTURE", architecture)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL[section].NUM_CLASSES = 80, 7
    cfg.MODEL[section].IN_FEATURES = ["p3", "p4"]
    cfg.MODEL.FCOS.NORM, cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME = "", "EqualizationLoss"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[18, 30]]
    cfg.MODEL.ROI_BOX_HEAD.CALIBRATION.NAME = "NorCal"
    model = build_model(cfg)
    assert type(model) is META_ARCH_REGISTRY.get(architecture) and model.cls_loss.num_classes == 7
    assert model.cls_loss.tail_mask.sum() == 5 and type(model.calibration) is NorCal
    losses, _ = step_of_trained(model, images(2, 1))
    assert all(loss.isfinite() for loss in losses.values())


def step_of_trained(model, batch):
    """As :func:`step`, for a model with frozen parameters."""
    model.train()
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    return losses, None


def test_softmax_is_refused_by_its_name(tiny_cfg):
    cfg = tiny_cfg("MODEL.META_ARCHITECTURE", "LongTailRetinaNet", "MODEL.RETINANET.NUM_CLASSES", 7)
    cfg.MODEL.RETINANET.IN_FEATURES, cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME = ["p3"], SoftmaxCrossEntropy.__name__
    with pytest.raises(InputError, match="SoftmaxCrossEntropy is no loss for LongTailRetinaNet"):
        build_model(cfg)
