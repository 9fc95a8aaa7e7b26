import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from eql_d2.losses import CLS_LOSS_REGISTRY, EqualizationLoss
from eql_d2.modeling import LongTailFastRCNNOutputLayers

STOCK = {
    "LongTailROIHeads": "StandardROIHeads",
    "LongTailCascadeROIHeads": "CascadeROIHeads",
    "LongTailRes5ROIHeads": "Res5ROIHeads",
}


def build(cfg, seed=0):
    torch.manual_seed(seed)
    return build_model(cfg)


def predictors(model):
    return [m for m in model.modules() if isinstance(m, LongTailFastRCNNOutputLayers)]


@pytest.mark.parametrize("loss", sorted(name for name, _ in CLS_LOSS_REGISTRY))
def test_every_loss_trains_and_scores_in_every_topology(tiny_cfg, topology, batched_inputs, loss):
    head, overrides = topology
    cfg = tiny_cfg("MODEL.ROI_HEADS.NAME", head, "MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", loss, *overrides)
    model = build(cfg)
    stages = predictors(model)
    assert len(stages) == (3 if "Cascade" in head else 1)
    assert all(type(p.cls_loss).__name__ == loss for p in stages)
    assert len({id(p.cls_loss) for p in stages}) == len(stages)  # each stage has its own state

    with EventStorage() as storage:
        losses = model(batched_inputs)
        sum(losses.values()).backward()
        assert "fast_rcnn/cls_accuracy" in " ".join(storage.latest())
    assert all(value.isfinite() for value in losses.values())
    for p in stages:
        assert p.cls_score.weight.grad.abs().sum() > 0 and p.bbox_pred.weight.grad.abs().sum() > 0

    model.eval()
    with torch.no_grad():
        detections = [output["instances"] for output in model(batched_inputs)]
    for d in detections:
        assert len(d) <= 300 and (d.pred_classes < 7).all() and (d.pred_classes >= 0).all()
        assert ((d.scores > 0) & (d.scores <= 1)).all()


def test_the_rest_of_the_model_is_bit_equal_to_the_stock_model(tiny_cfg, topology):
    head, overrides = topology
    mask = ["MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"]
    stock = build(tiny_cfg("MODEL.ROI_HEADS.NAME", STOCK[head], *overrides, *mask)).state_dict()
    for loss in ("EqualizationLoss", "SoftmaxCrossEntropy"):
        name = ["MODEL.ROI_HEADS.NAME", head, "MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", loss]
        model = build(tiny_cfg(*name, *overrides, *mask))
        after = torch.rand(3)
        ours = model.state_dict()
        assert ours.keys() == stock.keys()
        for key, value in stock.items():
            if "cls_score" not in key:
                assert torch.equal(ours[key], value), key
            elif loss == "SoftmaxCrossEntropy":
                assert torch.equal(ours[key], value), key
            elif key.endswith("weight"):
                assert torch.equal(ours[key], value[:-1]), key
        torch.manual_seed(0)
        build_model(tiny_cfg("MODEL.ROI_HEADS.NAME", STOCK[head], *overrides, *mask))
        assert torch.equal(torch.rand(3), after)  # the random stream goes on alike


def test_softmax_head_equals_the_stock_head(tiny_cfg, topology, batched_inputs):
    """Losses and detections of the generic head without a loss name are Detectron2's own, bit for bit.

    But for the value of the classification loss, whose RoIs are summed in another order; its gradient is the same
    (tests/losses/test_baselines.py).
    """
    head, overrides = topology
    outputs = []
    for name in (head, STOCK[head]):
        model = build(tiny_cfg("MODEL.ROI_HEADS.NAME", name, *overrides))
        with EventStorage() as storage:
            losses = {k: v.item() for k, v in model(batched_inputs).items()}
            stats = {k: v for k, (v, _) in storage.latest().items() if "cls_accuracy" in k or "negative" in k}
        model.eval()
        with torch.no_grad():
            detections = [output["instances"] for output in model(batched_inputs)]
        outputs.append((losses, stats, detections))
    (losses, stats, detections), (stock_losses, stock_stats, stock_detections) = outputs
    assert losses.keys() == stock_losses.keys()
    for key, loss in losses.items():
        assert loss == (pytest.approx(stock_losses[key], rel=1e-6) if "loss_cls" in key else stock_losses[key])
    for key in stock_stats:
        if "fg_cls_accuracy" not in key:  # ours is over the K categories alone, Detectron2's over K + 1
            assert stats[key] == stock_stats[key], key
    for ours, stock in zip(detections, stock_detections):
        assert torch.equal(ours.scores, stock.scores)
        assert torch.equal(ours.pred_boxes.tensor, stock.pred_boxes.tensor)


def test_prior_is_the_initial_score(tiny_cfg):
    cfg = tiny_cfg("MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", "EqualizationLoss")
    (predictor,) = predictors(build(cfg))
    torch.testing.assert_close(predictor.cls_score.bias.sigmoid(), torch.full((7,), 0.001))


@pytest.mark.parametrize("agnostic", [True, False])
def test_the_last_class_gets_its_box_loss(tiny_cfg, agnostic):
    """The original took column K - 1 for background, so its last class was never regressed."""
    cfg = tiny_cfg(
        "MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME",
        "EqualizationLoss",
        "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG",
        agnostic,
    )
    (predictor,) = predictors(build(cfg))
    boxes = torch.tensor([[10.0, 10, 30, 30]])
    deltas = torch.zeros(1, predictor.bbox_pred.out_features, requires_grad=True)
    predictor.box_reg_loss(boxes, boxes + 3, deltas, torch.tensor([6])).backward()
    assert (deltas.grad.reshape(-1, 4)[-1] != 0).any()


@pytest.mark.parametrize("prefix", ["", "Cascade", "Res5"])
def test_named_heads_stand_for_their_loss(tiny_cfg, prefix):
    from detectron2.modeling import ROI_HEADS_REGISTRY

    head = ROI_HEADS_REGISTRY.get(f"{prefix}EQLROIHeads")
    assert head.loss_name == "EqualizationLoss"
    with pytest.raises(ValueError, match=f"{prefix}EQLROIHeads.*SoftmaxCrossEntropy"):
        head._with_own_loss(tiny_cfg("MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", "SoftmaxCrossEntropy"))


def test_named_head_builds_its_loss(tiny_cfg):
    cfg = tiny_cfg("MODEL.ROI_HEADS.NAME", "EQLROIHeads", "MODEL.ROI_HEADS.LAMBDA", 0.0105)
    cfg.freeze()
    (predictor,) = predictors(build(cfg))
    assert isinstance(predictor.cls_loss, EqualizationLoss)
    assert predictor.cls_loss.tail_mask.tolist() == [True] * 3 + [False] * 4


@pytest.mark.parametrize("key", ["USE_SIGMOID_CE", "USE_FED_LOSS"])
def test_detectron2s_own_switches_are_refused(tiny_cfg, key):
    overrides = ["MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True] if key == "USE_SIGMOID_CE" else []
    with pytest.raises((ValueError, AssertionError), match="USE_SIGMOID_CE|sigmoid"):
        build(tiny_cfg(*overrides, *(["MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True] if not overrides else [])))


def test_the_tail_mask_follows_the_model_and_stays_out_of_checkpoints(tiny_cfg):
    model = build(tiny_cfg("MODEL.ROI_HEADS.NAME", "EQLROIHeads"))
    assert not any("tail_mask" in key for key in model.state_dict())
    (predictor,) = predictors(model.to("meta"))
    assert predictor.cls_loss.tail_mask.device.type == "meta"
