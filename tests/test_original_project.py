"""The original EQL project's config files run unmodified, and its checkpoints load.

They are written here anew, key by key.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.modeling import build_model

from eql_d2.engine import load_config
from eql_d2.engine.checks import check_names
from eql_d2.errors import InputError
from eql_d2.modeling import LongTailFastRCNNOutputLayers

ROOT = Path(__file__).parents[1]
K = 1230

# The three of projects/EQL/configs in its repository, by what they set. FREQ_INFO is in none, LAMBDA in the first.
COMMON = {
    "MODEL": {
        "WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
        "MASK_ON": True,
        "RESNETS": {"DEPTH": 50},
        "ROI_HEADS": {"NUM_CLASSES": K, "SCORE_THRESH_TEST": 0.0001},
    },
    "INPUT": {"MIN_SIZE_TRAIN": [640, 672, 704, 736, 768, 800]},
    "DATASETS": {"TRAIN": ["lvis_v0.5_train"], "TEST": ["lvis_v0.5_val"]},
    "TEST": {"DETECTIONS_PER_IMAGE": 300},
}
RFS = {"DATALOADER": {"SAMPLER_TRAIN": "RepeatFactorTrainingSampler", "REPEAT_THRESHOLD": 0.0005}}
STAGES, LEVELS = ["res2", "res3", "res4", "res5"], ["p2", "p3", "p4", "p5"]
PROJECT = {
    "Base-EQL-RCNN-FPN.yaml": {
        "MODEL": {
            "META_ARCHITECTURE": "GeneralizedRCNN",
            "BACKBONE": {"NAME": "build_resnet_fpn_backbone"},
            "RESNETS": {"OUT_FEATURES": STAGES},
            "FPN": {"IN_FEATURES": STAGES},
            "ANCHOR_GENERATOR": {"SIZES": [[32], [64], [128], [256], [512]], "ASPECT_RATIOS": [[0.5, 1.0, 2.0]]},
            "RPN": {
                "IN_FEATURES": [*LEVELS, "p6"],
                "PRE_NMS_TOPK_TRAIN": 2000,
                "PRE_NMS_TOPK_TEST": 1000,
                "POST_NMS_TOPK_TRAIN": 1000,
                "POST_NMS_TOPK_TEST": 1000,
            },
            "ROI_HEADS": {"NAME": "EQLROIHeads", "IN_FEATURES": LEVELS, "LAMBDA": 0.00177},
            "ROI_BOX_HEAD": {"NAME": "FastRCNNConvFCHead", "NUM_FC": 2, "POOLER_RESOLUTION": 7},
            "ROI_MASK_HEAD": {"NAME": "MaskRCNNConvUpsampleHead", "NUM_CONV": 4, "POOLER_RESOLUTION": 14},
        },
        "DATASETS": {"TRAIN": ["coco_2017_train"], "TEST": ["coco_2017_val"]},
        "SOLVER": {"IMS_PER_BATCH": 16, "BASE_LR": 0.02, "STEPS": [60000, 80000], "MAX_ITER": 90000},
        "VERSION": 2,
    },
    "eql_mask_rcnn_R_50_FPN_1x.yaml": {"_BASE_": "Base-EQL-RCNN-FPN.yaml", **COMMON},
    "eql_resampling_mask_rcnn_R_50_FPN_1x.yaml": {"_BASE_": "Base-EQL-RCNN-FPN.yaml", **COMMON, **RFS},
}
CONFIGS = [name for name in PROJECT if not name.startswith("Base")]
TINY = (
    *("MODEL.DEVICE", "cpu"),
    *("SOLVER.IMS_PER_BATCH", 1),
    *("DATALOADER.NUM_WORKERS", 0),
    *("SOLVER.BASE_LR", 1e-5),
    *("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 160),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", 5, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50),
    *("TEST.DETECTIONS_PER_IMAGE", 10),
)


@pytest.fixture
def project(tmp_path):
    """The config folder of the original project."""
    folder = tmp_path / "projects" / "EQL" / "configs"
    folder.mkdir(parents=True)
    for name, content in PROJECT.items():
        (folder / name).write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture
def datasets(shared_data, tmp_path):
    """A DETECTRON2_DATASETS with three COCO images a split, in LVIS v0.5's format under its 1,230 categories."""
    root = tmp_path / "datasets"
    (root / "lvis").mkdir(parents=True)
    (root / "coco").symlink_to(shared_data / "coco")
    categories = json.loads((shared_data / "lvis" / "lvis_v0.5_train_cat_info.json").read_text())
    ids = {c["synset"]: c["id"] for c in categories}
    for split in ("train", "val"):
        data = json.loads((shared_data / "lvis" / f"lvis_v1_{split}.json").read_text())
        synsets = {c["id"]: c["synset"] for c in data["categories"]}
        annotations = [
            {**a, "category_id": ids[synsets[a["category_id"]]]}
            for a in data["annotations"]
            if synsets[a["category_id"]] in ids
        ]
        images = sorted({a["image_id"] for a in annotations})[:3]
        content = {
            "images": [
                # v0.5's file names are COCO 2014's.
                {**image, "file_name": f"COCO_{split}2014_{image['id']:012}.jpg", "neg_category_ids": [1]}
                for image in data["images"]
                if image["id"] in images
            ],
            "annotations": [a for a in annotations if a["image_id"] in images],
            "categories": categories,
        }
        (root / "lvis" / f"lvis_v0.5_{split}.json").write_text(json.dumps(content))
    return root


def run_tool(datasets, *args):
    """tools/train_net.py in a process of its own, since Detectron2 registers LVIS's paths when it is imported."""
    command = [sys.executable, ROOT / "tools" / "train_net.py", *args]
    env = {**os.environ, "DETECTRON2_DATASETS": str(datasets), "PYTHONPATH": str(ROOT)}
    result = subprocess.run([str(c) for c in command], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def skip_random_weights(monkeypatch):
    for method in ("normal_", "uniform_"):
        monkeypatch.setattr(torch.Tensor, method, lambda self, *args, **kwargs: self)


@pytest.mark.parametrize("name", CONFIGS)
def test_its_configs_build_its_model(project, name, monkeypatch):
    skip_random_weights(monkeypatch)
    cfg = load_config(str(project / name), ["MODEL.DEVICE", "cpu"])
    assert cfg.DATALOADER.REPEAT_THRESHOLD == (0.0005 if "resampling" in name else 0.0)
    (predictor,) = [m for m in build_model(cfg).modules() if isinstance(m, LongTailFastRCNNOutputLayers)]
    assert type(predictor.cls_loss).__name__ == "EqualizationLoss"
    assert predictor.cls_loss.tail_mask.sum() == 915  # without a counts file
    assert predictor.cls_score.weight.shape == (K, 1024)
    torch.testing.assert_close(predictor.cls_score.bias.sigmoid(), torch.full((K,), 0.001))


def test_the_config_of_droploss_builds_its_model(project, monkeypatch):
    """A sibling of the project, whose base config differs in the head's name and a prior."""
    skip_random_weights(monkeypatch)
    opts = ["MODEL.ROI_HEADS.NAME", "DropLossROIHeads", "MODEL.ROI_HEADS.PRIOR_PROB", 0.001, "MODEL.DEVICE", "cpu"]
    cfg = load_config(str(project / CONFIGS[0]), opts)
    (predictor,) = [m for m in build_model(cfg).modules() if isinstance(m, LongTailFastRCNNOutputLayers)]
    assert type(predictor.cls_loss).__name__ == "DropLoss" and predictor.cls_score.weight.shape == (K, 1024)


@pytest.mark.parametrize("head, ours", [("CustomCascadeROIHeads", "Cascade"), ("DeticCascadeROIHeads", "Cascade")])
def test_heads_of_other_projects_are_told_their_keys(project, head, ours):
    cfg = load_config(str(project / CONFIGS[0]), ["MODEL.ROI_HEADS.NAME", head])
    with pytest.raises(InputError, match=f"'{head}', of .*LongTail{ours}ROIHeads.*CLS_LOSS.NAME FederatedLoss"):
        check_names(cfg)


def test_its_checkpoint_evaluates(project, datasets, tmp_path):
    config = project / "eql_mask_rcnn_R_50_FPN_1x.yaml"
    torch.manual_seed(0)
    weights = build_model(load_config(str(config), ["MODEL.DEVICE", "cpu"])).state_dict()
    prefix = "roi_heads.box_predictor"
    weights[f"{prefix}.cls_score.weight"] = torch.randn(K, 1024) * 0.01  # no background row
    weights[f"{prefix}.cls_score.bias"] = torch.full((K,), -6.9)
    assert weights[f"{prefix}.bbox_pred.weight"].shape == (4 * K, 1024)
    checkpoint = tmp_path / "original.pth"
    torch.save({"model": weights, "iteration": 89999}, checkpoint)
    output = run_tool(
        datasets,
        "--config-file",
        config,
        "--eval-only",
        *("MODEL.WEIGHTS", checkpoint),
        *("OUTPUT_DIR", tmp_path / "output"),
        *TINY,
    )
    assert "bbox on lvis_v0.5_val" in output and "segm on lvis_v0.5_val" in output and "APr" in output
    assert "not found in the checkpoint" not in output and "not loaded" not in output and "Skip loading" not in output


def test_its_config_trains_with_repeat_factor_sampling(project, datasets, tmp_path):
    output = run_tool(
        datasets,
        "--config-file",
        project / "eql_resampling_mask_rcnn_R_50_FPN_1x.yaml",
        *("MODEL.WEIGHTS", ""),
        *("OUTPUT_DIR", tmp_path / "output"),
        *TINY,
        *("SOLVER.MAX_ITER", 1, "SOLVER.STEPS", "()"),
        *("DATASETS.TEST", "()"),
    )
    assert "915 of 1230 classes are tail: 454 rare, 461 common, 0 frequent" in output
    assert "Using training sampler RepeatFactorTrainingSampler" in output
    assert (tmp_path / "output" / "model_final.pth").is_file()
