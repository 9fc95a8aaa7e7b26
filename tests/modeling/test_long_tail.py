"""Any LazyConfig model of Detectron2's as a long-tailed one, and what is refused."""

import copy

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling import ProposalNetwork
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, StandardROIHeads

from eql_d2.errors import InputError
from eql_d2.losses import EqualizationLoss, SeesawLoss, SigmoidCrossEntropy
from eql_d2.modeling import LongTailFastRCNNOutputLayers, LongTailROIHeads, long_tail
from eql_d2.modeling.roi_heads import LongTailCascadeROIHeads

SIGMOID = L(SigmoidCrossEntropy)(prior_prob=0.01)


@pytest.fixture
def mask_rcnn():
    return model_zoo.get_config("common/models/mask_rcnn_fpn.py").model


@pytest.fixture
def cascade():
    return model_zoo.get_config("common/models/cascade_rcnn.py").model


def predictors(model):
    return model.roi_heads.get("box_predictors") or [model.roi_heads.box_predictor]


MODELS = ["mask_rcnn_fpn", "cascade_rcnn", "mask_rcnn_vitdet", "mask_rcnn_c4", "keypoint_rcnn_fpn"]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_with_roi_heads(name):
    model = model_zoo.get_config(f"common/models/{name}.py").model
    stock = copy.deepcopy(model)
    assert long_tail(model, loss=SIGMOID) is model
    for ours, theirs in zip(predictors(model), predictors(stock), strict=True):
        assert ours.pop("cls_loss").num_classes == theirs.num_classes
        assert ours.pop("_target_") is LongTailFastRCNNOutputLayers and theirs.pop("_target_") is not None
        assert ours == theirs
    head, stock_head = model.roi_heads.pop("_target_"), stock.roi_heads.pop("_target_")
    assert head.__name__.startswith("LongTail") and issubclass(head, stock_head)
    assert model == stock


def test_the_model_is_the_stock_one_but_for_the_loss(mask_rcnn):
    """Of the same seed all weights are bit-equal, the classifier's rows of the categories included."""
    mask_rcnn.roi_heads.num_classes = 5
    models = []
    for config in (mask_rcnn, long_tail(copy.deepcopy(mask_rcnn), loss=SIGMOID)):
        torch.manual_seed(3)
        models.append(instantiate(config.roi_heads).state_dict())
    stock, ours = models
    assert stock.keys() == ours.keys()
    for name, value in ours.items():
        if "cls_score.bias" not in name:  # it starts from the prior
            assert torch.equal(value, stock[name][: len(value)]), name


def test_a_cascade_has_a_loss_for_each_stage(cascade):
    cascade.roi_heads.num_classes = 4
    long_tail(cascade, loss=L(SeesawLoss)(), cls_temperature=20.0)
    heads = instantiate(cascade.roi_heads)
    assert type(heads) is LongTailCascadeROIHeads
    losses = [predictor.cls_loss for predictor in heads.box_predictor]
    assert len({id(loss) for loss in losses}) == 3 and {loss.num_classes for loss in losses} == {4}
    assert {predictor.cls_score.temperature for predictor in heads.box_predictor} == {20.0}


def test_the_stock_switches_are_taken_out_and_a_loss_replaced(mask_rcnn, caplog):
    mask_rcnn.roi_heads.box_predictor.update(use_sigmoid_ce=True, use_fed_loss=True, get_fed_loss_cls_weights=len)
    with caplog.at_level("INFO"):
        long_tail(mask_rcnn, loss=SIGMOID)
    assert "not by ['use_sigmoid_ce', 'use_fed_loss', 'get_fed_loss_cls_weights']" in caplog.text
    long_tail(mask_rcnn, loss=L(SeesawLoss)())
    assert mask_rcnn.roi_heads.box_predictor.cls_loss._target_ is SeesawLoss
    assert mask_rcnn.roi_heads._target_ is LongTailROIHeads


class OwnPredictor(FastRCNNOutputLayers):
    pass


class OwnHeads(StandardROIHeads):
    pass


def test_what_is_refused(mask_rcnn):
    with pytest.raises(InputError, match="one with ROI heads and box predictors .*, RetinaNet or FCOS; got Proposal"):
        long_tail(L(ProposalNetwork)(), loss=SIGMOID)
    with pytest.raises(InputError, match=r"takes the config of a loss.*got a SigmoidCrossEntropy"):
        long_tail(mask_rcnn, loss=SigmoidCrossEntropy(80))
    with pytest.raises(InputError, match=r"EqualizationLoss needs frequencies: L\(EqualizationLoss\)\(frequencies="):
        long_tail(mask_rcnn, loss=L(EqualizationLoss)())
    own = copy.deepcopy(mask_rcnn)
    own.roi_heads.box_predictor._target_ = OwnPredictor
    with pytest.raises(InputError, match="the config's box predictor is OwnPredictor, whose own code would be lost"):
        long_tail(own, loss=SIGMOID)
    mask_rcnn.roi_heads._target_ = OwnHeads
    with pytest.raises(InputError, match="the config's ROI head is OwnHeads"):
        long_tail(mask_rcnn, loss=SIGMOID)
