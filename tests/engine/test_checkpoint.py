import urllib.error
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager

from eql_d2.engine import LongTailCheckpointer
from eql_d2.engine import checkpoint as checkpoint_module

WEIGHT = "roi_heads.box_predictor.cls_score.weight"


@pytest.fixture
def model_of(tiny_cfg):
    """A function that builds the tiny model of seven classes with a loss and its head's overrides."""

    def build(loss, *overrides):
        return build_model(tiny_cfg("MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", loss, *overrides))

    return build


def save(model, folder, prefix="", edit=lambda weights: None):
    weights = {f"{prefix}{k}": v.clone() for k, v in model.state_dict().items()}
    edit(weights)
    path = folder / "checkpoint.pth"
    torch.save({"model": weights}, path)
    return str(path)


@pytest.mark.parametrize("prefix", ["", "module."])  # the latter from a DistributedDataParallel model
@pytest.mark.parametrize("head", ["LongTailROIHeads", "LongTailCascadeROIHeads"])
def test_the_background_row_is_dropped(model_of, tmp_path, prefix, head):
    stock = {"LongTailROIHeads": "StandardROIHeads", "LongTailCascadeROIHeads": "CascadeROIHeads"}[head]
    trained = model_of("", "MODEL.ROI_HEADS.NAME", stock)
    path = save(trained, tmp_path, prefix)
    model = model_of("EqualizationLoss", "MODEL.ROI_HEADS.NAME", head)
    LongTailCheckpointer(model).load(path)
    for name, value in model.state_dict().items():
        expected = trained.state_dict()[name]
        assert torch.equal(value, expected[:7] if ".cls_score." in name else expected), name


def test_a_zero_background_row_is_appended(model_of, tmp_path, caplog):
    trained = model_of("SigmoidCrossEntropy")
    model = model_of("SoftmaxCrossEntropy")
    LongTailCheckpointer(model).load(save(trained, tmp_path))
    rows = model.state_dict()[WEIGHT]
    assert torch.equal(rows[:7], trained.state_dict()[WEIGHT]) and (rows[7] == 0).all()
    assert "no background row" in caplog.text


def test_a_normalised_classifier_keeps_its_own_background_row(model_of, tmp_path):
    """A row of zeros has no direction: its cosine's gradient would be 10^6 times as large as the others'."""
    trained = model_of("SigmoidCrossEntropy")
    model = model_of("SoftmaxCrossEntropy", "MODEL.ROI_BOX_HEAD.CLS_NORM.TEMPERATURE", 20)
    initial = model.state_dict()[WEIGHT].clone()
    LongTailCheckpointer(model).load(save(trained, tmp_path))
    rows = model.state_dict()[WEIGHT]
    assert torch.equal(rows[:7], trained.state_dict()[WEIGHT]) and torch.equal(rows[7], initial[7])
    assert model.state_dict()[WEIGHT.replace("weight", "bias")][7] == 0


def test_a_checkpoint_with_a_bias_fits_a_classifier_without(model_of, tmp_path):
    trained = model_of("SoftmaxCrossEntropy")
    norm = "MODEL.ROI_BOX_HEAD.CLS_NORM"
    model = model_of("LDAMLoss", f"{norm}.TEMPERATURE", 1, f"{norm}.BIAS", False)
    LongTailCheckpointer(model).load(save(trained, tmp_path))
    assert torch.equal(model.state_dict()[WEIGHT], trained.state_dict()[WEIGHT])


@pytest.mark.parametrize("rows", [6, 9, 81])
def test_another_width_is_an_error(model_of, tmp_path, rows):
    model = model_of("EqualizationLoss")

    def widen(weights):
        weights[WEIGHT] = torch.zeros(rows, weights[WEIGHT].shape[1])

    with pytest.raises(ValueError, match=rf"has {rows} rows.*EqualizationLoss, 7 classes\) has 7.*NUM_CLASSES"):
        LongTailCheckpointer(model).load(save(model, tmp_path, edit=widen))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_new_classifier_leaves_out_the_old_one(model_of, tmp_path, prefix):
    """Of any width; the rest is the checkpoint's."""
    trained = model_of("SoftmaxCrossEntropy")
    torch.nn.init.constant_(trained.roi_heads.box_predictor.cls_score.weight, 5.0)
    path = save(trained, tmp_path, prefix)
    model = model_of("EqualizationLoss", "MODEL.BACKBONE.FREEZE_AT", 1)
    fresh = {k: v.clone() for k, v in model.state_dict().items() if ".cls_score." in k}
    LongTailCheckpointer(model, new_classifier=True).resume_or_load(path, resume=False)
    for name, value in model.state_dict().items():
        assert torch.equal(value, fresh[name] if name in fresh else trained.state_dict()[name]), name


@pytest.mark.parametrize("agnostic", [True, False])
def test_a_new_classifier_for_another_number_of_classes(model_of, tiny_cfg, tmp_path, agnostic):
    """Layers that have a part a class start anew too."""
    key = ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", agnostic]
    cfg = tiny_cfg("MODEL.ROI_HEADS.NUM_CLASSES", 12, "MODEL.ROI_BOX_HEAD.CLS_LOSS.COUNTS_FILE", "", *key)
    trained = build_model(cfg)
    path = save(trained, tmp_path)
    model = model_of("EqualizationLoss", *key)
    with pytest.raises(ValueError, match="has 13 rows.*MODEL.NEW_CLASSIFIER True"):
        LongTailCheckpointer(model).load(path)
    LongTailCheckpointer(model, new_classifier=True).load(path)
    weights = trained.state_dict()
    same = {name for name, value in model.state_dict().items() if torch.equal(value, weights[name])}
    of_classes = {name for name in weights if ".cls_score." in name or ".bbox_pred." in name and not agnostic}
    assert weights.keys() - same <= of_classes and not any(".cls_score." in name for name in same)


def test_a_resumed_run_keeps_its_new_classifier(model_of, tmp_path):
    trained, model = model_of("SoftmaxCrossEntropy"), model_of("SoftmaxCrossEntropy")
    torch.nn.init.constant_(trained.roi_heads.box_predictor.cls_score.weight, 5.0)
    LongTailCheckpointer(trained, str(tmp_path), new_classifier=True).save("model_0000002", iteration=2)
    LongTailCheckpointer(model, str(tmp_path), new_classifier=True).resume_or_load("nowhere.pth", resume=True)
    assert (model.state_dict()[WEIGHT] == 5).all()


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and an empty cache; returns the cache's folder."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("iopath.common.file_io.download", refuse)
    return tmp_path / "cache"


def test_weights_that_cannot_be_downloaded(offline):
    name = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
    with pytest.raises(FileNotFoundError, match="dl.fbaipublicfiles.com.*put it at") as error:
        checkpoint_module.require_file(name)
    place = Path(str(error.value).split("put it at ")[1].split(" ")[0])
    assert place.is_relative_to(offline)
    place.parent.mkdir(parents=True, exist_ok=True)  # now do as it says
    place.touch()
    checkpoint_module.require_file(f"{name}?matching_heuristics=True")
    assert PathManager.get_local_path(name) == str(place)


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.pth.*no such file.*MODEL\.WEIGHTS"):
        checkpoint_module.require_file(str(tmp_path / "no.pth"))
