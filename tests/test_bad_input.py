"""What bad input gets: one error before any training step, which names both sides and the cure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from eql_d2.data.whole_files import written_whole
from eql_d2.engine import Trainer, check_run, load_config, one_line_errors
from eql_d2.engine.ignored_keys import check_model_reads
from eql_d2.engine.settings import settings_of
from eql_d2.engine.setup import use_available_device
from eql_d2.errors import InputError
from eql_d2.losses import EqualizationLoss, SigmoidCrossEntropy

ROOT = Path(__file__).parents[1]
BASE = str(ROOT / "configs" / "MiniLVIS" / "Base-MiniLVIS.yaml")
NODE = "MODEL.ROI_BOX_HEAD.CLS_LOSS"


@pytest.fixture
def dataset(tmp_path):
    """Two COCO-format images of seven categories, registered as `eql_d2_bad_input`; returns the annotation file."""
    name = "eql_d2_bad_input"
    for i in (1, 2):
        Image.new("RGB", (64, 64), (i * 90, 20, 120)).save(tmp_path / f"{i}.png")
    data = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 64} for i in (1, 2)],
        "categories": [{"id": 10 * i, "name": f"c{i}"} for i in range(7)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 10 * i, "bbox": [8, 8, 40, 40], "area": 1600, "iscrowd": 0}
            for i in (1, 2)
        ],
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(data))
    load_config("", ["DATASETS.REGISTER", [[name, str(path), str(tmp_path)]]])
    yield name, path
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.fixture
def run_cfg(tiny_cfg, dataset):
    """A function that makes the config of a run on that dataset."""

    def make(*overrides):
        name, _ = dataset
        train = ["DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,), "SOLVER.IMS_PER_BATCH", 1]
        return tiny_cfg(*train, "MODEL.RPN.POST_NMS_TOPK_TEST", 20, *overrides)

    return make


@pytest.mark.parametrize("train", ["DATASETS.TRAIN", "DATASETS.TEST"])
@pytest.mark.parametrize("loss", ["SoftmaxCrossEntropy", "EqualizationLoss"])
def test_number_of_classes(run_cfg, dataset, train, loss):
    """For every loss, also those that need no counts."""
    cfg = run_cfg(f"{NODE}.NAME", loss, "MODEL.ROI_HEADS.NUM_CLASSES", 8)
    other = "DATASETS.TEST" if train == "DATASETS.TRAIN" else "DATASETS.TRAIN"
    cfg.DATASETS[other.split(".")[1]] = ("coco_2017_val",) if other == "DATASETS.TRAIN" else ()
    with pytest.raises(ValueError, match=f"NUM_CLASSES is 8.*{train}. has 7 categories: set NUM_CLASSES 7"):
        check_run(cfg, train=train == "DATASETS.TRAIN")


def test_number_of_classes_in_an_evaluation_alone(run_cfg, dataset):
    with pytest.raises(ValueError, match="NUM_CLASSES is 8.*has 7 categories"):
        Trainer.build_evaluator(run_cfg("MODEL.ROI_HEADS.NUM_CLASSES", 8), dataset[0])


def test_unregistered_dataset(run_cfg):
    with pytest.raises(ValueError, match="'eql_d2_bad_inputs' of DATASETS.TRAIN is not .*mean eql_d2_bad_input"):
        Trainer(run_cfg("DATASETS.TRAIN", ("eql_d2_bad_inputs",)))
    with pytest.raises(ValueError, match=r"'qqq' of DATASETS.TEST is not registered\. .*DATASETS.REGISTER"):
        check_run(run_cfg("DATASETS.TEST", ("qqq",)), train=False)
    for name in (None, 1, ["a"]):  # of no dataset, either
        with pytest.raises(InputError, match="of DATASETS.TEST is not registered"):
            check_run(run_cfg("DATASETS.TEST", (name,)), train=False)
    with pytest.raises(ValueError, match="DATASETS.TRAIN is empty"):
        check_run(run_cfg("DATASETS.TRAIN", ()), train=True)


def test_missing_annotation_file(run_cfg, dataset):
    dataset[1].unlink()
    with pytest.raises(ValueError, match=r"'eql_d2_bad_input'.*not there: .*annotations.json.*DETECTRON2_DATASETS"):
        Trainer(run_cfg())


@pytest.mark.parametrize("content, message", [("{,", "is not a JSON file"), ('{"images": []}', "lacks.*categories")])
def test_broken_annotation_file(run_cfg, dataset, content, message):
    dataset[1].write_text(content)
    with pytest.raises(ValueError, match=f"annotations.json.*{message}"):
        check_run(run_cfg(), train=False)  # a test set, before training
    with pytest.raises(ValueError, match=f"annotations.json.*{message}"):
        Trainer.build_train_loader(run_cfg())  # a training set, as it is read


def test_missing_test_set_shows_before_training(run_cfg):
    with pytest.raises(ValueError, match="DATASETS.TEST"):
        Trainer(run_cfg("DATASETS.TEST", ("no_such_set",)))


@pytest.mark.parametrize("value", [0, -0.1, 1.5])
def test_lambda_out_of_range(run_cfg, value):
    cfg = run_cfg("MODEL.ROI_HEADS.NAME", "EQLROIHeads", "MODEL.ROI_HEADS.LAMBDA", value)
    with pytest.raises(ValueError, match=rf"in \(0, 1\], got {value}"):
        Trainer(cfg)


def test_two_tail_rules(run_cfg):
    rules = [f"{NODE}.EqualizationLoss.TAIL.GROUPS", "r", f"{NODE}.EqualizationLoss.TAIL.MAX_IMAGE_COUNT", 10]
    with pytest.raises(ValueError, match="one rule.*'image_count': 10, 'groups': 'r'.*keep one"):
        EqualizationLoss.from_config(run_cfg(*rules))


@pytest.mark.parametrize(
    "key, wrong, right",
    [
        (f"{NODE}.NAME", "EqualisationLoss", "EqualizationLoss"),
        ("MODEL.ROI_HEADS.NAME", "EQLROIHead", "EQLROIHeads"),
    ],
)
def test_unknown_names(run_cfg, key, wrong, right):
    with pytest.raises(ValueError, match=f"{key} is '{wrong}'.*did you mean.*{right}"):
        Trainer(run_cfg(key, wrong))


def test_unknown_config_key(tmp_path):
    message = r"no config key MODEL\.ROI_HEADS\.LAMDA; did you mean MODEL\.ROI_HEADS\.LAMBDA"
    with pytest.raises(InputError, match=message):
        load_config("", ["MODEL.ROI_HEADS.LAMDA", 0.1])
    path = tmp_path / "config.yaml"
    path.write_text("MODEL:\n  ROI_HEADS:\n    LAMDA: 0.1\n")
    with pytest.raises(InputError, match=message):
        load_config(str(path))
    with pytest.raises(InputError, match=r"SigmoidFocalLoss\.GAMA; did you mean .*SigmoidFocalLoss\.GAMMA"):
        load_config("", [f"{NODE}.SigmoidFocalLoss.GAMA", 2.0])


@pytest.mark.parametrize("where", ["file", "list"])
def test_a_whole_number_for_a_float(where, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("MODEL: {ROI_BOX_HEAD: {CLS_LOSS: {SigmoidFocalLoss: {GAMMA: 2}}}}")
    given = (str(path), []) if where == "file" else ("", [f"{NODE}.SigmoidFocalLoss.GAMMA", "2"])
    with pytest.raises(InputError, match=r"SigmoidFocalLoss\.GAMMA is 2, a whole number; .*: write 2\.0$"):
        load_config(*given)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("MODEL.FPN.NORM", "Foo", "'Foo'.*'SyncBN'"),
        ("MODEL.RESNETS.NORM", "SynBN", "'SynBN'.*mean SyncBN"),
        ("MODEL.ROI_HEADS.IN_FEATURES", ("p9",), "'p9'.*'p2'"),
        ("MODEL.RPN.IN_FEATURES", ("res4",), "'res4'.*'p2'"),
        ("MODEL.FPN.IN_FEATURES", ("res9",), "'res9'.*mean res"),
        ("MODEL.RESNETS.OUT_FEATURES", ("res9",), "'res9'.*mean res"),
        ("MODEL.BACKBONE.NAME", "build_resnet_fpn", "'build_resnet_fpn'.*mean build_resnet_fpn_backbone"),
        ("MODEL.PROPOSAL_GENERATOR.NAME", "RPNN", "'RPNN'.*mean RPN"),
        ("MODEL.RPN.HEAD_NAME", "StandardRPN", "'StandardRPN'.*mean StandardRPNHead"),
        ("MODEL.ANCHOR_GENERATOR.NAME", "Foo", "'Foo'.*DefaultAnchorGenerator"),
        ("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFC", ".*mean FastRCNNConvFCHead"),
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV3", ".*mean ROIAlignV2"),
        ("MODEL.META_ARCHITECTURE", "RetinaNets", ".*mean RetinaNet"),
    ],
)
def test_a_part_that_detectron2_does_not_know(tiny_cfg, key, value, message):
    with pytest.raises(InputError, match=f"^{key} is {message}") as error:
        Trainer.build_model(tiny_cfg(key, value))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("DATALOADER.SAMPLER_TRAIN", "ClassAwareSamplers", "mean ClassAwareSampler"),
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupCosine", "mean WarmupCosineLR"),
        ("INPUT.FORMAT", "XYZ", "'XYZ': expected 'BGR'"),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "choices", "mean choice"),
    ],
)
def test_other_values_that_are_none(run_cfg, key, value, message):
    with pytest.raises(InputError, match=f"^{key} is .*{message}"):
        Trainer(run_cfg(key, value))


def test_a_bug_of_a_users_own_keeps_its_traceback(run_cfg, monkeypatch):
    """Also beside a value that is not known to Detectron2, which it never came to."""

    def buggy(*args, **kwargs):
        raise KeyError("a")

    monkeypatch.setattr(EqualizationLoss, "__init__", buggy)
    for options in ([], ["MODEL.ROI_MASK_HEAD.NAME", "Foo"]):
        with pytest.raises(KeyError, match="'a'"):
            Trainer(run_cfg(f"{NODE}.NAME", "EqualizationLoss", *options))


def test_a_device_that_is_none(tiny_cfg):
    with pytest.raises(InputError, match="MODEL.DEVICE .*'cudaa': expected cuda or cpu"):
        use_available_device(tiny_cfg("MODEL.DEVICE", "cudaa"))


def test_a_head_that_contradicts_the_loss(run_cfg):
    with pytest.raises(ValueError, match="EQLROIHeads stands for.*EqualizationLoss.*SoftmaxCrossEntropy"):
        Trainer(run_cfg("MODEL.ROI_HEADS.NAME", "EQLROIHeads", f"{NODE}.NAME", "SoftmaxCrossEntropy"))
    with pytest.raises(ValueError, match="'StandardROIHeads', which ignores it.*LongTailROIHeads"):
        Trainer(run_cfg("MODEL.ROI_HEADS.NAME", "StandardROIHeads", f"{NODE}.NAME", "EqualizationLoss"))


def test_nan_stops_training_and_keeps_earlier_checkpoints(run_cfg, tmp_path, monkeypatch):
    cfg = run_cfg(
        *(f"{NODE}.NAME", "EqualizationLoss"),
        *("SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 2),
        *("SEED", 0),
    )
    trainer = Trainer(cfg)
    compute = EqualizationLoss.compute

    def compute_nan_at_4(self, logits, *args):
        return compute(self, logits * float("nan") if trainer.iter == 4 else logits, *args)

    monkeypatch.setattr(EqualizationLoss, "compute", compute_nan_at_4)
    with pytest.raises(FloatingPointError, match="iteration 4.*'loss_cls': nan.*EqualizationLoss.*output") as error:
        trainer.train()
    assert "\n" not in str(error.value)
    output = tmp_path / "output"
    saved = sorted(path.name for path in output.glob("*.pth"))
    assert saved == ["model_0000001.pth", "model_0000003.pth"]
    assert (output / "last_checkpoint").read_text() == "model_0000003.pth"
    weights = torch.load(output / "model_0000003.pth", weights_only=True)["model"]
    assert all(w.isfinite().all() for w in weights.values())
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_one_line_errors(capsys, monkeypatch):
    with pytest.raises(SystemExit, match="1"), one_line_errors():
        raise InputError("no key 'x'")
    assert capsys.readouterr().err == "error: no key 'x'\n"
    with pytest.raises(SystemExit, match="1"), one_line_errors(), written_whole("no/such/folder"):
        pass
    assert capsys.readouterr().err.startswith("error: cannot write no/such/folder: there is no such folder.")
    # Of ours or of a person's own code: with its traceback.
    for bug in (ZeroDivisionError(), KeyError(), ValueError(), FileNotFoundError(2, "No such file", "a/b")):
        with pytest.raises(type(bug)), one_line_errors():
            raise bug
    monkeypatch.setenv("EQL_D2_TRACEBACK", "1")
    with pytest.raises(InputError), one_line_errors():
        raise InputError


def test_the_tool_prints_one_line_and_fails(tmp_path):
    """Exit code and output of a process, which the other tests do without."""
    command = [
        sys.executable,
        ROOT / "tools" / "train_net.py",
        "--config-file",
        BASE,
        *("MODEL.DEVICE", "cpu"),
        *("OUTPUT_DIR", tmp_path),
        *(f"{NODE}.NAME", "EqualisationLoss"),
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([str(c) for c in command], env=env, capture_output=True, text=True)
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "did you mean" in errors[0]
    assert "Traceback" not in result.stderr + result.stdout


@pytest.mark.parametrize(
    "key, value",
    [
        (f"{NODE}.IMAGE_LABELS", True),
        (f"{NODE}.START_ITER", 5),
        (f"{NODE}.COMPILE", True),
        ("MODEL.ROI_BOX_HEAD.CLS_SCALE", True),
        ("MODEL.ROI_BOX_HEAD.CLS_NORM.TEMPERATURE", 20.0),
        ("MODEL.ROI_HEADS.LAMBDA", 0.00177),
        ("MODEL.ROI_HEADS.PRIOR_PROB", 0.001),
    ],
)
def test_keys_that_a_head_of_detectron2_would_ignore(run_cfg, key, value):
    with pytest.raises(ValueError, match=f"{key} is {value}, but MODEL.ROI_HEADS.NAME is .*'StandardROIHeads'"):
        check_run(run_cfg(key, value, "MODEL.ROI_HEADS.NAME", "StandardROIHeads"), train=True)


RETINANET = ("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.NUM_CLASSES", 7)


@pytest.mark.parametrize("architecture", ["RetinaNet", "ProposalNetwork", "SemanticSegmentor"])
@pytest.mark.parametrize(
    "key, value",
    [
        (f"{NODE}.NAME", "EqualizedFocalLoss"),
        (f"{NODE}.EqualizationLoss.TAIL.GROUPS", "r"),
        ("MODEL.ROI_BOX_HEAD.CALIBRATION.NAME", "NorCal"),
        ("MODEL.ROI_BOX_HEAD.CLS_SCALE", True),
        ("MODEL.ROI_HEADS.LAMBDA", 0.00177),
        ("MODEL.ROI_HEADS.NAME", "EQLROIHeads"),  # a loss by another name
    ],
)
def test_keys_that_an_architecture_of_detectron2_would_ignore(run_cfg, architecture, key, value):
    cfg = run_cfg(*RETINANET, "MODEL.META_ARCHITECTURE", architecture, key, value)
    with pytest.raises(InputError, match=f"{key} is {value!r}, but MODEL.META_ARCHITECTURE is .*'{architecture}'"):
        check_run(cfg, train=True)


def test_models_of_detectron2_run_where_no_key_is_ignored(run_cfg):
    check_run(run_cfg(*RETINANET), train=True)
    check_run(run_cfg("MODEL.ROI_HEADS.NAME", "StandardROIHeads"), train=True)


def test_architectures_that_read_the_keys(run_cfg):
    """One derived from GeneralizedRCNN, of Detectron2's, and one of a user's own, which may read whatever it likes."""
    loss = (f"{NODE}.NAME", "EqualizationLoss")
    check_run(run_cfg("MODEL.META_ARCHITECTURE", "PanopticFPN", *loss), train=True)
    check_run(run_cfg(*RETINANET, "MODEL.META_ARCHITECTURE", own_architecture(), *loss), train=True)


OURS = (*RETINANET, "MODEL.META_ARCHITECTURE", "LongTailRetinaNet")


@pytest.mark.parametrize(
    "key, value, cure",
    [
        ("MODEL.ROI_BOX_HEAD.CLS_SCALE", True, "has no part that reads it: drop it"),
        ("MODEL.ROI_BOX_HEAD.CLS_NORM.TEMPERATURE", 20.0, "has no part that reads it: drop it"),
        (f"{NODE}.IMAGE_LABELS", True, "drop it, or choose a detector with ROI heads"),
        ("MODEL.ROI_HEADS.NAME", "EQLROIHeads", f"name the loss by {NODE}.NAME"),
        ("MODEL.RETINANET.FOCAL_LOSS_GAMMA", 1.5, f"goes by its classification loss: set {NODE}.Sigmoid"),
        ("MODEL.RETINANET.PRIOR_PROB", 0.02, "goes by its classification loss: set PRIOR_PROB of the loss"),
    ],
)
def test_keys_that_our_dense_detector_would_ignore(run_cfg, key, value, cure):
    with pytest.raises(InputError, match=f"^{key} is {value!r}, but LongTailRetinaNet .*{cure}"):
        check_run(run_cfg(*OURS, key, value), train=True)


def test_keys_that_our_dense_detector_reads(run_cfg):
    calibration = ("MODEL.ROI_BOX_HEAD.CALIBRATION.NAME", "NorCal")
    check_run(run_cfg(*OURS, f"{NODE}.NAME", "EqualizedFocalLoss", *calibration), train=True)
    check_run(run_cfg(*OURS, "MODEL.ROI_HEADS.LAMBDA", 0.00177, f"{NODE}.NAME", "EqualizationLoss"), train=True)
    fcos = ("MODEL.META_ARCHITECTURE", "LongTailFCOS", "MODEL.ROI_HEADS.NUM_CLASSES", 80)
    check_run(run_cfg(*fcos, "MODEL.FCOS.NUM_CLASSES", 7), train=True)
    with pytest.raises(InputError, match=r"MODEL\.FCOS\.NUM_CLASSES is 80.*7 categories"):
        check_run(run_cfg(*fcos), train=True)


def test_test_time_augmentation_of_a_dense_detector(run_cfg):
    with pytest.raises(InputError, match="TEST.AUG.ENABLED is True, but .*'LongTailRetinaNet' has no ROI heads"):
        check_run(run_cfg(*OURS, "TEST.AUG.ENABLED", True), train=True)


def test_number_of_classes_of_stuff(run_cfg, dataset):
    MetadataCatalog.get(dataset[0]).stuff_classes = ["things", "sky"]
    panoptic = ("MODEL.META_ARCHITECTURE", "PanopticFPN")
    check_run(run_cfg(*panoptic, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 2), train=True)
    with pytest.raises(InputError, match="SEM_SEG_HEAD.NUM_CLASSES is 54, but .* has 2 classes of stuff: set NUM_CL"):
        check_run(run_cfg(*panoptic), train=True)


def test_a_model_that_was_built_without_the_loss(run_cfg):
    """What an architecture of a user's own reads shows then."""
    model = nn.Linear(2, 2)
    cfg = run_cfg(*RETINANET, "MODEL.META_ARCHITECTURE", own_architecture(), f"{NODE}.NAME", "EqualizationLoss")
    with pytest.raises(
        InputError, match=f"{NODE}.NAME is 'EqualizationLoss', but the model .* has no classification l"
    ):
        check_model_reads(cfg, model)
    check_model_reads(cfg, SigmoidCrossEntropy(7))
    check_model_reads(run_cfg(*RETINANET), model)
    node = L(nn.Linear)(own=L(SigmoidCrossEntropy)(num_classes=7))
    lazy = OmegaConf.create({"model": node}, flags={"allow_objects": True})
    with pytest.raises(InputError, match="names the loss SigmoidCrossEntropy, but the Linear that it builds has no"):
        check_model_reads(lazy, model)


def own_architecture() -> str:
    if "OwnRetinaNet" not in META_ARCH_REGISTRY:
        META_ARCH_REGISTRY.register(type("OwnRetinaNet", (RetinaNet,), {"__module__": "own"}))
    return "OwnRetinaNet"


def test_number_of_classes_of_a_retinanet(run_cfg):
    """Its own key counts, not that of the ROI heads, which it has none of."""
    check_run(run_cfg(*RETINANET, "MODEL.ROI_HEADS.NUM_CLASSES", 80), train=True)
    cfg = run_cfg(*RETINANET, "MODEL.RETINANET.NUM_CLASSES", 80)
    with pytest.raises(InputError, match=r"MODEL\.RETINANET\.NUM_CLASSES is 80.*7 categories: set NUM_CLASSES 7"):
        check_run(cfg, train=True)
    with pytest.raises(InputError, match=r"MODEL\.RETINANET\.NUM_CLASSES is 80.*7 categories"):
        settings_of(cfg).frequencies()


def test_unknown_architecture(run_cfg):
    with pytest.raises(InputError, match="META_ARCHITECTURE is 'RetinaNets'.*did you mean RetinaNet"):
        check_run(run_cfg("MODEL.META_ARCHITECTURE", "RetinaNets"), train=True)


def test_a_strength_without_a_calibration(run_cfg):
    key = "MODEL.ROI_BOX_HEAD.CALIBRATION"
    with pytest.raises(InputError, match=f"{key}.STRENGTH is 0.5, but {key}.NAME is ''"):
        check_run(run_cfg(f"{key}.STRENGTH", 0.5), train=True)
    check_run(run_cfg(f"{key}.STRENGTH", 0.5, f"{key}.NAME", "NorCal"), train=True)


def test_hyper_parameters_of_another_loss_are_said(run_cfg, monkeypatch):
    """A line and no error, so that a config's loss can be swapped on the command line."""
    said = []
    monkeypatch.setattr("eql_d2.engine.ignored_keys.logger.warning", lambda text, *values: said.append(text % values))
    gamma = (f"{NODE}.SigmoidFocalLoss.GAMMA", 3.0)
    check_run(run_cfg(*gamma, f"{NODE}.NAME", "SigmoidFocalLoss"), train=True)
    check_run(run_cfg(*gamma, "MODEL.ROI_HEADS.NAME", "FocalROIHeads"), train=True)
    assert said == []
    check_run(run_cfg(*gamma, f"{NODE}.NAME", "EqualizationLoss"), train=True)
    assert said == [f"{gamma[0]} is 3.0, but the loss is EqualizationLoss, which does not read it"]


def test_keys_of_another_detector_are_said(run_cfg, monkeypatch):
    said = []
    monkeypatch.setattr("eql_d2.engine.ignored_keys.logger.warning", lambda text, *values: said.append(text % values))
    check_run(run_cfg("MODEL.FCOS.NUM_CONVS", 2), train=True)
    assert said == ["MODEL.FCOS.NUM_CONVS is 2, but the detector is GeneralizedRCNN, which does not read it"]


def test_a_rate_of_what_is_off(run_cfg):
    key = "MODEL.ROI_BOX_HEAD.META_REWEIGHT"
    with pytest.raises(InputError, match=f"{key}.LR is 0.5, but {key}.ENABLED is False"):
        check_run(run_cfg(f"{key}.LR", 0.5), train=True)


@pytest.mark.parametrize(
    "key, value, loss, others",
    [
        ("LAMBDA", 0.00177, "SigmoidCrossEntropy", "DropLoss, EqualizationLoss, SoftmaxEqualizationLoss"),
        ("LAMBDA", 0.00177, "", "DropLoss, EqualizationLoss, SoftmaxEqualizationLoss"),
        ("PRIOR_PROB", 0.01, "SoftmaxEqualizationLoss", ".*EqualizationLoss, .*SigmoidFocalLoss"),
    ],
)
def test_keys_of_the_original_project_that_a_loss_would_ignore(run_cfg, key, value, loss, others):
    message = f"MODEL.ROI_HEADS.{key} is {value}, but {loss or 'SoftmaxCrossEntropy'} has .*: {others}"
    with pytest.raises(ValueError, match=message) as error:
        Trainer(run_cfg(f"{NODE}.NAME", loss, f"MODEL.ROI_HEADS.{key}", value))
    assert "\n" not in str(error.value)


def test_image_labels_of_a_dataset_that_has_none(run_cfg, dataset):
    """COCO format."""
    cfg = run_cfg(f"{NODE}.NAME", "SigmoidCrossEntropy", f"{NODE}.IMAGE_LABELS", True)
    with pytest.raises(ValueError, match=f"IMAGE_LABELS is True, but no image of '{dataset[0]}' lists neg_category"):
        Trainer(cfg)


def test_a_frozen_part_that_the_model_does_not_have(run_cfg):
    with pytest.raises(ValueError, match="MODEL.FREEZE: 'roi_heads.mask_head' matches no module"):
        Trainer(run_cfg("MODEL.FREEZE", ["backbone", "roi_heads.mask_head"]))
