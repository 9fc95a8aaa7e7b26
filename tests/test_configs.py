"""Every config that comes with the package loads and builds, and means what its name says."""

import functools
import itertools
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

import eql_d2
from eql_d2 import ClassFrequencies
from eql_d2.engine import load_config
from eql_d2.engine.settings import detecting_head, loss_name
from eql_d2.errors import InputError
from eql_d2.losses import EqualizationLoss
from eql_d2.modeling.freeze import freeze
from eql_d2.modeling.predictors import predictors_of
from eql_d2.removed_configs import replacement

ROOT = Path(eql_d2.__file__).parent / "configs"
CONFIGS = sorted(str(p.relative_to(ROOT)) for p in ROOT.rglob("*.yaml"))
# Bases that state a dataset or a schedule, and no architecture.
PARTIAL = ("Base-LVIS.yaml", "Base-LVISv0.5.yaml", "Base-LVISv1.yaml", "Base-instant_test.yaml")
MODELS = [name for name in CONFIGS if Path(name).name not in PARTIAL]
LEAVES = [name for name in CONFIGS if "Base-" not in name and "base_weights" not in name]
NUM_CLASSES = {"lvis_v0.5": 1230, "lvis_v1": 1203, "coco_2017": 80, "mini_lvis": 90, "mini_lvis_base": 80}


def load(name, *overrides):
    return load_config(str(ROOT / name), overrides)


@pytest.fixture
def build(monkeypatch, tmp_path):
    """A function that builds a config's model on the CPU, without random weights, which would take most of the time."""
    for method in ("normal_", "uniform_"):
        monkeypatch.setattr(torch.Tensor, method, lambda self, *args, **kwargs: self)

    def build(name):
        cfg = load(name, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path))
        if not name.startswith("LVIS"):  # whose counts are shipped
            K = cfg.MODEL[detecting_head(cfg)].NUM_CLASSES
            counts = tmp_path / "counts.json"
            ClassFrequencies([50] * K, [90] * K, num_images=1000).save(counts)
            cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.COUNTS_FILE = str(counts)
        return build_model(cfg)

    return build


@pytest.mark.parametrize("name", MODELS)
def test_loads_and_builds(name, build):
    cfg = load(name)
    heads = predictors_of(build(name))
    assert len(heads) == (3 if "cascade" in name else 1)
    for head in heads:
        assert head.num_classes == cfg.MODEL[detecting_head(cfg)].NUM_CLASSES
        assert len(head.cls_score.weight) % head.cls_loss.num_logits == 0
        loss = head.cls_loss.loss if cfg.MODEL.ROI_BOX_HEAD.META_REWEIGHT.ENABLED else head.cls_loss
        assert type(loss).__name__ == loss_name(cfg)


@pytest.mark.parametrize("name", LEAVES)
def test_leaves_are_short_and_have_the_classes_of_their_dataset(name):
    assert len((ROOT / name).read_text().splitlines()) <= 12
    cfg = load(name)
    for dataset in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        assert NUM_CLASSES[dataset.rsplit("_", 1)[0]] == cfg.MODEL[detecting_head(cfg)].NUM_CLASSES
        classes = MetadataCatalog.get(dataset).get("thing_classes")
        assert classes is None or len(classes) == cfg.MODEL[detecting_head(cfg)].NUM_CLASSES


def values(node, *path):
    """(path, value) of each key of a nested dict."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from values(value, *path, key)
        else:
            yield (*path, key), value


@pytest.mark.parametrize("name", LEAVES)
def test_a_leaf_repeats_nothing_that_it_stands_on(name, tmp_path):
    written = yaml.safe_load((ROOT / name).read_text())
    bases = written.pop("_BASE_")
    bases = [bases] if isinstance(bases, str) else bases
    base_file = tmp_path / "base.yaml"
    base_file.write_text(yaml.dump({"_BASE_": [str((ROOT / name).parent / base) for base in bases]}))
    base = load(base_file)
    for path, value in values(written):
        inherited = functools.reduce(lambda node, key: node[key], path, base)
        assert inherited != CfgNode._decode_cfg_value(value), ".".join(path)


# Removed name, and what each override of its replacement must have made of the config.
REMOVED = [
    ("LVISv1/eql_mask_rcnn_R_101_FPN_RFS_2x", "lvis_v1_train", "EQLROIHeads", 101, 0.001, 180000),
    ("LVISv0.5/eql_mask_rcnn_R_50_FPN_RFS_1x", "lvis_v0.5_train", "EQLROIHeads", 50, 0.0005, 90000),
    ("LVISv0.5/eql_mask_rcnn_X_101_32x8d_FPN_1x", "lvis_v0.5_train", "EQLROIHeads", 101, 0.0, 90000),
    ("LVISv0.5/softmax_mask_rcnn_R_101_FPN_RFS_2x", "lvis_v0.5_train", "SoftmaxCrossEntropy", 101, 0.001, 180000),
    ("COCO/sigmoid_mask_rcnn_R_50_FPN_1x", "coco_2017_train", "SigmoidCrossEntropy", 50, 0.0, 90000),
]


@pytest.mark.parametrize("name, dataset, loss, depth, threshold, iterations", REMOVED)
def test_a_removed_name_says_what_replaces_it(name, dataset, loss, depth, threshold, iterations):
    with pytest.raises(InputError, match="replaced by: ") as error:
        eql_d2.get_config_file(f"{name}.yaml")
    words = shlex.split(str(error.value).split("replaced by: ")[1])
    with pytest.raises(InputError, match=re.escape(words[0])):
        load(f"{name}.yaml")
    cfg = load(*words)
    assert cfg.DATASETS.TRAIN == (dataset,)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == NUM_CLASSES[dataset.removesuffix("_train")]
    assert loss in (cfg.MODEL.ROI_HEADS.NAME, cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME)
    assert cfg.MODEL.RESNETS.DEPTH == depth
    assert cfg.DATALOADER.REPEAT_THRESHOLD == threshold
    assert (cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler") == (threshold > 0)
    assert cfg.SOLVER.MAX_ITER == iterations


def test_every_removed_name_is_replaced_by_a_file_that_is_there():
    """What the overrides behind it make of the config is tested above."""
    parts = (
        ("LVISv0.5", "LVISv1"),
        ("eql", "sigmoid", "softmax"),
        ("R_50", "R_101", "X_101_32x8d"),
        ("", "_RFS"),
        (1, 2),
    )
    names = [f"{a}/{b}_mask_rcnn_{c}_FPN{d}_{e}x.yaml" for a, b, c, d, e in itertools.product(*parts)]
    names += [f"COCO/{loss}_mask_rcnn_R_50_FPN_1x.yaml" for loss in ("sigmoid", "softmax")]
    removed = [name for name in names if not (ROOT / name).exists()]
    assert len(removed) == 61
    for name in removed:
        file, *overrides = shlex.split(replacement(name))
        assert (ROOT / file).exists() and overrides, name


@pytest.mark.parametrize("name", [name for name in LEAVES if name.startswith("LVIS")])
def test_names_of_lvis_configs_say_what_is_in_them(name):
    cfg = load(name)
    assert f"R_{cfg.MODEL.RESNETS.DEPTH}" in name or ("X_101" in name and cfg.MODEL.RESNETS.NUM_GROUPS == 32)
    assert str(cfg.MODEL.RESNETS.DEPTH) in cfg.MODEL.WEIGHTS
    assert ("_RFS" in name) == (cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler")
    if "_RFS" in name:
        assert cfg.DATALOADER.REPEAT_THRESHOLD == 0.001
    if "stage2" not in name:
        assert cfg.SOLVER.MAX_ITER == 90000
    assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 1e-4 and cfg.TEST.DETECTIONS_PER_IMAGE == 300
    assert cfg.SOLVER.CLIP_GRADIENTS.ENABLED and cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE == 35.0


# What the second stage of decoupled training trains, by recipe; the rest is frozen.
TRAINED = {
    "crt": ["bbox_pred", "cls_score"],
    "lws": ["cls_scale"],
    "bags": ["bbox_pred", "cls_score"],
    "balanced": ["cls_score"],
}


@pytest.mark.parametrize("name", [name for name in LEAVES if "/stage2_" in name])
def test_the_second_stage_trains_what_its_recipe_says(name, build):
    """On the weights of a first stage that has a config, whose classifier it takes or leaves out."""
    cfg = load(name)
    recipe = Path(name).name.split("_")[1]
    model = freeze(build(name), cfg.MODEL.FREEZE)
    trained = {key for key, p in model.named_parameters() if p.requires_grad}
    expected = {f"roi_heads.box_predictor.{layer}" for layer in TRAINED[recipe]}
    assert {key.removesuffix(".weight").removesuffix(".bias") for key in trained} == expected

    first_stage = Path(cfg.MODEL.WEIGHTS).parent.name
    if name.startswith("MiniLVIS"):  # whose runs are named after loss and seed
        first_stage = f"{first_stage.split('_')[0]}_faster_rcnn"
    # The sampler is an override; where it names the folder, it names the second stage's as well.
    assert ("_RFS" in first_stage) == ("_RFS" in name)
    first = load(f"{Path(name).parent}/{first_stage.replace('_RFS', '')}.yaml")
    kind = "Sigmoid" if recipe == "balanced" else "Softmax"
    assert first.MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME == f"{kind}CrossEntropy"
    assert first.DATASETS.TRAIN == cfg.DATASETS.TRAIN
    assert cfg.MODEL.NEW_CLASSIFIER == (recipe in ("crt", "bags"))
    assert (cfg.DATALOADER.SAMPLER_TRAIN == "ClassAwareSampler") == (recipe in ("crt", "lws"))
    assert cfg.SOLVER.MAX_ITER <= first.SOLVER.MAX_ITER


@pytest.mark.parametrize("folder, tail", [("LVISv0.5", 915), ("LVISv1", 798)])
def test_the_tail_is_rare_and_common(folder, tail):
    for name in (name for name in LEAVES if name.startswith(f"{folder}/eql_")):
        cfg = load(name)
        loss = EqualizationLoss(**EqualizationLoss.from_config(cfg))
        assert loss.tail_mask.sum() == tail, name
        groups = ClassFrequencies.from_config(cfg).groups
        assert {g for g, is_tail in zip(groups, loss.tail_mask.tolist()) if is_tail} == {"r", "c"}
