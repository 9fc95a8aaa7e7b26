"""configs/lazy/LVISv1: full-size models are Detectron2's own but for the classifier, and small ones train."""

import copy
import math
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch.utils._device import DeviceContext

from eql_d2 import ClassFrequencies, get_config_file
from eql_d2.engine.trainer import Trainer
from eql_d2.losses import EqualizationLoss, EqualizationLossV2, FederatedLoss, SeesawLoss, SigmoidCrossEntropy
from eql_d2.modeling import long_tail
from eql_d2.modeling.long_tail import box_predictor_nodes

FOLDER = Path(get_config_file("lazy/mini_lvis_eql.py")).parent / "LVISv1"
RECIPES = sorted(path.stem for path in FOLDER.glob("*mask_rcnn*.py"))
PUBLISHED = {  # million parameters with COCO's 80 classes and softmax: ViTDet's tables, MViTv2's
    "mask_rcnn_vitdet_b_100ep": 111,
    "mask_rcnn_vitdet_l_100ep": 331,
    "cascade_mask_rcnn_vitdet_b_100ep": 141,
    "cascade_mask_rcnn_vitdet_l_100ep": 361,
    "cascade_mask_rcnn_mvitv2_b_100ep": 103,
}


class Meta(DeviceContext):
    """Builds on the meta device, where a tensor has a shape and no values, but for the numbers that ViT asks for."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.linspace:
            return func(*args, **{**(kwargs or {}), "device": "cpu"})
        return super().__torch_function__(func, types, args, kwargs)


def load(name):
    return LazyConfig.load(str(FOLDER / f"{name}.py"))


def shapes(model_config):
    with Meta(torch.device("meta")):
        model = instantiate(model_config)
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def as_stock(model):
    """The recipe's model with Detectron2's own predictor."""
    model = copy.deepcopy(model)
    for predictor in box_predictor_nodes(model):
        predictor._target_ = FastRCNNOutputLayers
        predictor.pop("cls_loss")
    return model


@pytest.mark.parametrize("name", RECIPES)
def test_a_full_size_model_is_the_stock_one_but_for_the_classifier(name):
    model = load(name).model
    stock = shapes(as_stock(model))
    long_tail(model, loss=L(SigmoidCrossEntropy)())
    ours = shapes(model)
    assert ours.keys() == stock.keys()
    other = {key for key in ours if ours[key] != stock[key]}
    assert other == {key for key in ours if ".cls_score." in key}
    assert {(ours[key][0], stock[key][0]) for key in other} == {(1203, 1204)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_many_parameters_as_published(name):
    model = as_stock(load(name).model)
    model.roi_heads.num_classes = 80
    for predictor in box_predictor_nodes(model):
        predictor.num_classes = 80
    assert round(sum(math.prod(shape) for shape in shapes(model).values()) / 1e6) == PUBLISHED[name]


def test_vitdet_b_has_the_parameters_of_detectron2s():
    model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
    model.roi_heads.num_classes = 1203
    assert shapes(as_stock(load("mask_rcnn_vitdet_b_100ep").model)) == shapes(model)


@pytest.mark.parametrize("name", RECIPES)
def test_what_the_recipes_have_in_common(name):
    cfg = load(name)
    losses = [predictor.cls_loss for predictor in box_predictor_nodes(cfg.model)]
    assert len(losses) == (3 if name.startswith("cascade") else 1)
    for predictor in box_predictor_nodes(cfg.model):
        assert (predictor.num_classes, predictor.test_topk_per_image) == (1203, 300)
        assert predictor.cls_loss._target_ is FederatedLoss
    epochs = 50 if "50ep" in name else 100
    schedule = cfg.lr_multiplier
    assert cfg.train.max_iter * 64 == pytest.approx(epochs * 100_000)
    assert schedule.scheduler.num_updates == cfg.train.max_iter
    assert [round(m / cfg.train.max_iter, 4) for m in schedule.scheduler.milestones] == [0.8889, 0.963]
    assert cfg.dataloader.train.mapper.image_format == cfg.dataloader.test.mapper.image_format == cfg.model.input_format


def test_each_loss_is_one_line():
    losses = LazyConfig.load(str(FOLDER / "losses.py"))
    for name, loss in (
        ("federated", FederatedLoss),
        ("eql", EqualizationLoss),
        ("eqlv2", EqualizationLossV2),
        ("seesaw", SeesawLoss),
    ):
        model = load("cascade_mask_rcnn_vitdet_b_100ep").model
        long_tail(model, loss=losses[name])
        assert {predictor.cls_loss._target_ for predictor in model.roi_heads.box_predictors} == {loss}
    assert type(instantiate(losses.frequencies)) is ClassFrequencies and len(instantiate(losses.frequencies)) == 1203


def test_learning_rates_decay_by_layer():
    cfg = load("mask_rcnn_vitdet_b_100ep")
    cfg.model.backbone.net.update(embed_dim=24, num_heads=2)
    model = instantiate(cfg.model.backbone)
    optimizer = Trainer.build_optimizer(cfg, torch.nn.ModuleDict({"backbone": model}))
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert type(optimizer) is torch.optim.AdamW
    assert rate[id(model.net.pos_embed)] == pytest.approx(2e-4 * 0.7**13)
    assert rate[id(model.net.blocks[11].attn.qkv.weight)] == pytest.approx(2e-4 * 0.7)
