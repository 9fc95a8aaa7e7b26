"""Detectron2's own LVIS recipes run with our tools: two iterations and the evaluation, small, on another data set.

Only depth, width, image size, batch and data set are changed (tests/slow/small_recipes.py).
Those of Detectron2's projects/ are not in its wheel:

    EQL_D2_DETECTRON2=/path/to/detectron2 python -m pytest tests/slow/test_upstream_recipes.py -m slow
"""

import os
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.data import DatasetCatalog, MetadataCatalog

from eql_d2 import ClassFrequencies
from eql_d2.engine import Trainer, load_config
from eql_d2.losses import EqualizationLoss
from eql_d2.mini_lvis.datasets import register_mini_lvis
from eql_d2.mini_lvis.generator import MiniLVISSpec
from eql_d2.modeling import long_tail
from tests.slow.small_recipes import SIZE, small

pytestmark = pytest.mark.slow

CHECKOUT = "EQL_D2_DETECTRON2"
CLASSES = 7
PROJECTS = [
    "ViTDet/configs/LVIS/mask_rcnn_vitdet_b_100ep.py",
    "ViTDet/configs/LVIS/mask_rcnn_vitdet_l_100ep.py",
    "ViTDet/configs/LVIS/cascade_mask_rcnn_vitdet_b_100ep.py",
    "ViTDet/configs/LVIS/cascade_mask_rcnn_vitdet_h_100ep.py",
    "ViTDet/configs/LVIS/cascade_mask_rcnn_swin_b_in21k_50ep.py",
    "ViTDet/configs/LVIS/cascade_mask_rcnn_mvitv2_b_in21k_100ep.py",
    "MViTv2/configs/cascade_mask_rcnn_mvitv2_t_3x.py",
]
BASELINES = [
    "mask_rcnn_R_50_FPN_100ep_LSJ.py",
    "mask_rcnn_R_50_FPN_400ep_LSJ.py",
    "mask_rcnn_regnety_4gf_dds_FPN_100ep_LSJ.py",
]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    name = "eql_d2_test_upstream"
    spec = MiniLVISSpec(num_categories=7, num_train_images=30, num_val_images=6, max_image_count=20, min_val_images=2)
    register_mini_lvis(name, spec, tmp_path_factory.mktemp("datasets") / "mini")
    yield f"{name}_train", f"{name}_val"
    for split in ("train", "val"):
        DatasetCatalog.remove(f"{name}_{split}")
        MetadataCatalog.remove(f"{name}_{split}")


def run(cfg):
    trainer = Trainer(cfg)
    trainer.resume_or_load(False)
    results = trainer.train()
    assert {"bbox", "segm"} <= results.keys()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def eql(cfg, datasets):
    long_tail(cfg.model, loss=L(EqualizationLoss)(frequencies=L(ClassFrequencies.from_dataset)(name=datasets[0])))
    return cfg


@pytest.mark.parametrize("name", PROJECTS)
def test_projects(name, datasets, tmp_path):
    if CHECKOUT not in os.environ:
        pytest.skip(f"Detectron2's wheel has no projects/: set {CHECKOUT} to the folder of a checkout")
    cfg = LazyConfig.load(str(Path(os.environ[CHECKOUT]) / "projects" / name))
    run(eql(small(cfg, datasets, tmp_path, CLASSES), datasets))


@pytest.mark.parametrize("name", BASELINES)
def test_new_baselines(name, datasets, tmp_path):
    cfg = small(model_zoo.get_config(f"new_baselines/{name}"), datasets, tmp_path, CLASSES)
    run(eql(cfg, datasets))


@pytest.mark.parametrize("version", ["LVISv0.5", "LVISv1"])
@pytest.mark.parametrize("head", ["StandardROIHeads", "EQLROIHeads"])
def test_lvis_yamls(version, head, datasets, tmp_path):
    cfg = load_config(model_zoo.get_config_file(f"{version}-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"))
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (datasets[0],), (datasets[1],)
    cfg.merge_from_list(["MODEL.ROI_HEADS.NAME", head, "MODEL.ROI_HEADS.NUM_CLASSES", CLASSES, "MODEL.WEIGHTS", ""])
    cfg.merge_from_list(["INPUT.MIN_SIZE_TRAIN", (SIZE,), "INPUT.MIN_SIZE_TEST", SIZE, "DATALOADER.NUM_WORKERS", 0])
    cfg.merge_from_list(["MODEL.RPN.POST_NMS_TOPK_TEST", 20, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16])
    cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "SOLVER.BASE_LR", 1e-5])
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path)])
    run(cfg)
