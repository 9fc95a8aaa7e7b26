import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from eql_d2.modeling.freeze import freeze, is_named

BODY = ["backbone", "proposal_generator", "roi_heads.box_head"]


@pytest.fixture
def model(tiny_cfg):
    return build_model(tiny_cfg())


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    "pattern, names",
    [
        ("backbone", {"backbone": True, "backbone.fpn.weight": True, "backbones.x": False, "x.backbone": False}),
        ("*.bbox_pred", {"head.bbox_pred.bias": True, "head.0.bbox_pred": True, "head.bbox_predictor": False}),
        ("head.?.fc", {"head.0.fc.weight": True, "head.fc": False}),
        ("a.weight", {"a.weight": True, "a.bias": False}),
    ],
)
def test_a_pattern_names_a_module_and_what_is_in_it(pattern, names):
    assert {name: is_named(name, [pattern]) for name in names} == names


def test_only_the_predictor_is_trained(model):
    predictor = {name for name in trained(model) if name.startswith("roi_heads.box_predictor.")}
    freeze(model, BODY)
    assert trained(model) == predictor and len(predictor) == 4
    freeze(model, ["*.bbox_pred", "*.cls_score.bias"])
    assert trained(model) == {"roi_heads.box_predictor.cls_score.weight"}


def test_in_a_cascade_a_pattern_reaches_every_stage(tiny_cfg):
    model = freeze(build_model(tiny_cfg("MODEL.ROI_HEADS.NAME", "LongTailCascadeROIHeads")), [*BODY, "*.bbox_pred"])
    stages = [f"roi_heads.box_predictor.{k}.cls_score.{p}" for k in range(3) for p in ("weight", "bias")]
    assert trained(model) == set(stages)


def test_frozen_batch_norm_stays_as_it_is_through_training(model, batched_inputs):
    """Also after model.train(), in a copy, and with the statistics that it is given later (a checkpoint's)."""
    reference = copy.deepcopy(model)
    freeze(model, ["backbone"])
    for norm in (m for m in (*model.modules(), *reference.modules()) if isinstance(m, torch.nn.BatchNorm2d)):
        norm.running_mean += 0.5
    for one in (model, copy.deepcopy(model)):
        before = copy.deepcopy(one.state_dict())
        one.train()
        with EventStorage():
            sum(one(batched_inputs).values()).backward()
        assert all(torch.equal(before[name], value) for name, value in one.state_dict().items())
        assert not any(p.grad is not None for p in one.backbone.parameters())
        x = torch.rand(1, 3, 64, 64)
        outputs, expected = one.backbone.train()(x), reference.backbone.eval()(x)
        assert all(torch.equal(outputs[level], expected[level]) for level in expected)
    # Without freezing they move.
    with EventStorage():
        reference.train()(batched_inputs)
    assert any(not torch.equal(before[name], value) for name, value in reference.state_dict().items())


def test_a_part_that_behaves_otherwise_in_training_goes_on_so(model, batched_inputs):
    freeze(model, BODY)
    with EventStorage():
        assert {"loss_rpn_cls", "loss_rpn_loc"} <= model.train()(batched_inputs).keys()


def test_a_pattern_that_matches_nothing(model):
    message = r"MODEL.FREEZE: 'roi_heads.box_haed' matches no .*mean roi_heads.box_head.*'backbone'"
    with pytest.raises(ValueError, match=message):
        freeze(model, ["backbone", "roi_heads.box_haed"])


def test_something_must_be_trained(model):
    with pytest.raises(ValueError, match="freezes the whole model"):
        freeze(model, ["*"])
    assert freeze(model, []) is model
