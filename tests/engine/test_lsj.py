"""Large-scale jitter by YAML keys, and the packages that it and the transformers need."""

import sys

import pytest
import torch
from detectron2.config import LazyConfig

from eql_d2 import get_config_file
from eql_d2.engine import Trainer
from eql_d2.engine.lazy_parts import crops_polygons
from eql_d2.engine.yaml_parts import build_train_loader, large_scale_jitter, training_mapper
from eql_d2.errors import InputError, what_to_say


@pytest.fixture
def lsj_cfg(tiny_cfg, datasets):
    def make(*overrides):
        return tiny_cfg("DATASETS.TRAIN", (datasets[0],), "INPUT.LSJ.SIZE", 96, *overrides)

    return make


def test_images_are_of_the_size_and_scales_of_the_range(lsj_cfg):
    cfg = lsj_cfg("INPUT.LSJ.SCALE_RANGE", (0.5, 1.5), "INPUT.RANDOM_FLIP", "horizontal")
    jitter, crop, flip = large_scale_jitter(cfg)
    assert (jitter.min_scale, jitter.max_scale, jitter.target_height, crop.crop_size) == (0.5, 1.5, 96, (96, 96))
    batches = iter(build_train_loader(cfg))
    images = [image for _ in range(4) for image in next(batches)]
    assert {tuple(image["image"].shape) for image in images} == {(3, 96, 96)}
    boxes = torch.cat([image["instances"].gt_boxes.tensor for image in images])
    assert boxes.min() >= 0 and boxes.max() <= 96
    assert type(flip).__name__ == "RandomFlip"


def test_boxes_of_cropped_objects_are_of_what_is_left_of_their_masks(lsj_cfg):
    assert training_mapper(lsj_cfg("MODEL.MASK_ON", True)).recompute_boxes
    assert not training_mapper(lsj_cfg()).recompute_boxes  # without masks there is nothing to compute them of


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("INPUT.LSJ.SIZE", -1), "INPUT.LSJ.SIZE is -1"),
        (("INPUT.LSJ.SCALE_RANGE", (2.0, 1.0)), r"INPUT.LSJ.SCALE_RANGE \(2.0, 1.0\)"),
        (("INPUT.CROP.ENABLED", True), "INPUT.CROP.ENABLED and INPUT.LSJ.SIZE are both set"),
    ],
)
def test_what_makes_no_sense(lsj_cfg, overrides, message):
    with pytest.raises(InputError, match=message):
        training_mapper(lsj_cfg(*overrides))


def test_without_shapely(lsj_cfg, monkeypatch):
    monkeypatch.setitem(sys.modules, "shapely", None)
    with pytest.raises(ModuleNotFoundError) as error:
        training_mapper(lsj_cfg("MODEL.MASK_ON", True))
    assert what_to_say(error.value) == "shapely is needed, of the extra `vit`: pip install 'eql_d2[vit]'"
    training_mapper(lsj_cfg())
    training_mapper(lsj_cfg("MODEL.MASK_ON", True, "INPUT.MASK_FORMAT", "bitmask"))
    mapper = LazyConfig.load(get_config_file("lazy/LVISv1/mask_rcnn_R_50_FPN_100ep_LSJ.py")).dataloader.train.mapper
    assert crops_polygons(mapper)
    mapper.instance_mask_format = "bitmask"
    assert not crops_polygons(mapper)


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.models.layers", None)
    cfg = LazyConfig.load(get_config_file("lazy/mini_lvis_vitdet_sigmoid.py"))
    with pytest.raises(ModuleNotFoundError) as error:
        Trainer.build_model(cfg)
    assert what_to_say(error.value) == "timm is needed, of the extra `vit`: pip install 'eql_d2[vit]'"


def test_activation_checkpointing_needs_no_fairscale():
    cfg = LazyConfig.load(get_config_file("lazy/mini_lvis_vitdet_sigmoid.py"))
    cfg.train.device = "cpu"
    cfg.model.backbone.net.use_act_checkpoint = True
    model = Trainer.build_model(cfg)
    assert cfg.model.backbone.net.use_act_checkpoint  # the record says what was asked for
    assert all("forward" in vars(block) for block in model.backbone.net.blocks)


@pytest.mark.parametrize("masks", [False, True])
def test_copy_paste_by_its_key(lsj_cfg, masks):
    cfg = lsj_cfg("INPUT.COPY_PASTE.MAX_OBJECTS", 4, "MODEL.MASK_ON", masks, "INPUT.MASK_FORMAT", "bitmask")
    batch = next(iter(build_train_loader(cfg)))
    assert all(image["instances"].has("gt_masks") == masks for image in batch)
    assert sum(len(image["instances"]) for image in batch) > 0
