import errno
import os
import pickle
import shutil
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager

from eql_d2.engine import LongTailCheckpointer
from eql_d2.engine import checkpoint as checkpoint_module
from eql_d2.engine.checkpoint import CheckpointError, require_writable
from eql_d2.errors import InputError

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
    model = model_of("SoftmaxCrossEntropy", "MODEL.ROI_BOX_HEAD.CLS_NORM.TEMPERATURE", 20.0)
    initial = model.state_dict()[WEIGHT].clone()
    LongTailCheckpointer(model).load(save(trained, tmp_path))
    rows = model.state_dict()[WEIGHT]
    assert torch.equal(rows[:7], trained.state_dict()[WEIGHT]) and torch.equal(rows[7], initial[7])
    assert model.state_dict()[WEIGHT.replace("weight", "bias")][7] == 0


def test_a_checkpoint_with_a_bias_fits_a_classifier_without(model_of, tmp_path):
    trained = model_of("SoftmaxCrossEntropy")
    norm = "MODEL.ROI_BOX_HEAD.CLS_NORM"
    model = model_of("LDAMLoss", f"{norm}.TEMPERATURE", 1.0, f"{norm}.BIAS", False)
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
    of_classes = {name for name in weights if ".cls_score." in name or (".bbox_pred." in name and not agnostic)}
    assert weights.keys() - same <= of_classes and not any(".cls_score." in name for name in same)


def test_a_new_classifier_leaves_out_the_old_ones_scale(model_of, tmp_path):
    """The factors of the logits that LWS has learnt belong to the old classifier."""
    key = ["MODEL.ROI_BOX_HEAD.CLS_SCALE", True]
    trained, model = model_of("SoftmaxCrossEntropy", *key), model_of("SoftmaxCrossEntropy", *key)
    torch.nn.init.constant_(trained.roi_heads.box_predictor.cls_scale, 5.0)
    path = save(trained, tmp_path)
    LongTailCheckpointer(model, new_classifier=True).load(path)
    assert (model.roi_heads.box_predictor.cls_scale == 1).all()
    LongTailCheckpointer(model).load(path)
    assert (model.roi_heads.box_predictor.cls_scale == 5).all()


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
    with pytest.raises(InputError, match="dl.fbaipublicfiles.com.*put it at") as error:
        checkpoint_module.require_file(name)
    place = Path(str(error.value).split("put it at ")[1].split(" ")[0])
    assert place.is_relative_to(offline)
    place.parent.mkdir(parents=True, exist_ok=True)  # now do as it says
    place.touch()
    checkpoint_module.require_file(f"{name}?matching_heuristics=True")
    assert PathManager.get_local_path(name) == str(place)


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match=r"no\.pth.*no such file.*MODEL\.WEIGHTS"):
        checkpoint_module.require_file(str(tmp_path / "no.pth"))


@pytest.fixture
def small(tmp_path):
    """A checkpointer of a layer, whose weights are the number of the checkpoint, with three saved."""
    checkpointer = LongTailCheckpointer(torch.nn.Linear(100, 100), str(tmp_path))
    for iteration in (1, 3, 5):
        torch.nn.init.constant_(checkpointer.model.weight, iteration)
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    return checkpointer


def resume(checkpointer):
    """The iteration that is resumed from, by the extra data and by the weights."""
    iteration = checkpointer.resume_or_load("", resume=True)["iteration"]
    assert (checkpointer.model.weight == iteration).all()
    return iteration


def test_it_resumes_from_the_last(small):
    assert resume(small) == 5 == small.saved_iteration


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # in the weights: the file is still a readable zip
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, Path.unlink])
def test_a_broken_checkpoint_is_passed_over(small, tmp_path, caplog, damage):
    damage(tmp_path / "model_0000005.pth")
    assert resume(small) == 3
    assert "model_0000005.pth cannot be used" in caplog.text
    damage(tmp_path / "model_0000003.pth")
    assert resume(small) == 1
    damage(tmp_path / "model_0000001.pth")
    with pytest.raises(CheckpointError, match="no checkpoint in .* is whole: .*0000005.*--resume"):
        resume(small)


def test_later_checkpoints_of_an_earlier_run_are_no_substitute(small, tmp_path):
    small.tag_last_checkpoint("model_0000003.pth")
    assert resume(small) == 3
    truncate(tmp_path / "model_0000003.pth")
    assert resume(small) == 1


def test_an_empty_or_missing_tag(small, tmp_path, caplog):
    (tmp_path / "last_checkpoint").write_text("")
    assert resume(small) == 5
    (tmp_path / "last_checkpoint").unlink()
    assert small.resume_or_load("", resume=True) == {}
    assert "model_0000005.pth is there, but no file last_checkpoint" in caplog.text


@pytest.mark.parametrize(
    "tag", [b"../model_0000001.pth", b"\xff\x00\x1b[2J", b"model\x00.pth", b"\x1b]0;evil\x07", b"x" * 3000, b"a\nb"]
)
def test_a_tag_that_is_no_name_of_a_file_beside_it(small, tmp_path, caplog, tag):
    """Nothing outside of the folder is read."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(tmp_path / "model_0000005.pth", folder)
    (folder / "last_checkpoint").write_bytes(tag)
    assert resume(LongTailCheckpointer(small.model, str(folder))) == 5
    assert "which is no name of a file beside it" in caplog.text and "\x1b" not in caplog.text


def test_links_that_a_person_made_are_followed(small, tmp_path):
    """The folder, to a larger disk, and a checkpoint in it, to an archive, of which the original stays."""
    (tmp_path / "disk").mkdir()
    for name in ("model_0000005.pth", "last_checkpoint"):
        (tmp_path / name).rename(tmp_path / "disk" / name)
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "model_0000003.pth").symlink_to(tmp_path / "model_0000003.pth")
    linked = LongTailCheckpointer(small.model, str(tmp_path / "run"))
    assert resume(linked) == 5
    truncate(tmp_path / "disk" / "model_0000005.pth")
    assert resume(linked) == 3
    linked.save("model_0000003", iteration=3)  # a file takes the link's place
    assert not (tmp_path / "disk" / "model_0000003.pth").is_symlink()
    assert torch.load(tmp_path / "model_0000003.pth", weights_only=True)["iteration"] == 3


class FullDisk:
    """A file that fails after some bytes, as on a full disk."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.file.close()


@pytest.mark.parametrize("room", [0, 10_000, 41_000])
def test_a_full_disk_keeps_the_last_checkpoint(small, tmp_path, monkeypatch, room):
    monkeypatch.setattr("builtins.open", lambda *args, real=open, **kwargs: FullDisk(real(*args, **kwargs), room))
    with pytest.raises(CheckpointError, match="0000007.pth: No space left on device. .*last good one .*0000005.pth"):
        small.save("model_0000007", iteration=7)
    monkeypatch.undo()
    assert resume(small) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "last_checkpoint",
        "model_0000001.pth",
        "model_0000003.pth",
        "model_0000005.pth",
    ]


def test_a_folder_that_is_none(small, tmp_path):
    small.save_dir = str(tmp_path / "last_checkpoint")
    with pytest.raises(CheckpointError, match="Not a directory.*none before it"):
        small.save("model_0000007")


def test_an_output_that_cannot_be_written_shows_before_a_run(tmp_path, monkeypatch):
    require_writable(str(tmp_path / "new" / "folder"))
    assert not list((tmp_path / "new" / "folder").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot write to .*file.x: Not a directory.*OUTPUT_DIR"):
        require_writable(str(tmp_path / "file" / "x"))
    monkeypatch.setattr("builtins.open", lambda *args, real=open, **kwargs: FullDisk(real(*args, **kwargs), 0))
    with pytest.raises(CheckpointError, match="No space left on device"):
        require_writable(str(tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "new"]


def test_a_crash_while_writing_leaves_the_last_checkpoint(small, tmp_path, monkeypatch):
    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        small.save("model_0000007", iteration=7)
    monkeypatch.undo()
    for name in ("model_0000009.pth.tmp", "last_checkpoint.tmp", "notes.tmp"):  # of kill -9, and of the user
        (tmp_path / name).write_text("half")
    small.add_checkpointable("trainer", torch.nn.Identity())  # only a training removes them
    assert resume(small) == 5
    assert [path.name for path in tmp_path.glob("*.tmp")] == ["notes.tmp"]


def test_objects_are_not_loaded(tmp_path):
    path = tmp_path / "objects.pth"
    torch.save({"model": {}, "hook": Path("x")}, path)
    with pytest.raises(ValueError, match="objects.pth is no checkpoint of tensors and plain Python"):
        LongTailCheckpointer(torch.nn.Linear(2, 2)).load(str(path))


class Payload:
    """What unpickles to a call."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", ["pkl", "pyth"])
def test_nothing_in_a_pickle_is_run(tmp_path, suffix):
    path, touched = tmp_path / f"evil.{suffix}", tmp_path / "touched"
    content = {"model": {"x": Payload(touched)}, "model_state": {}, "__author__": "x"}
    path.write_bytes(pickle.dumps(content)) if suffix == "pkl" else torch.save(content, path)
    with pytest.raises(ValueError, match=f"evil.{suffix} is no checkpoint of tensors and plain Python"):
        LongTailCheckpointer(torch.nn.Linear(2, 2)).load(str(path))
    assert not touched.exists()
    pickle.loads(pickle.dumps(Payload(touched)))
    assert touched.exists()  # it would have run


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_the_pickles_of_model_zoos_load(tmp_path, protocol):
    path = tmp_path / "zoo.pkl"
    weights = {"weight": np.arange(4, dtype=np.float32).reshape(2, 2), "bias": np.float32([5, 6])}
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "a zoo", "n": np.float64(1)}, protocol))
    model = torch.nn.Linear(2, 2)
    LongTailCheckpointer(model).load(str(path))
    assert model.weight.tolist() == [[0, 1], [2, 3]] and model.bias.tolist() == [5, 6]


def test_a_training_starts_with_losses_of_their_own_state_and_an_evaluation_does_not(model_of, tmp_path):
    trained = model_of("LDAMLoss")
    trained.roi_heads.box_predictor.cls_loss.steps += 3
    path = save(trained, tmp_path)
    for arguments, steps in (({"trainer": torch.nn.Linear(1, 1)}, 0), ({}, 3)):
        model = model_of("LDAMLoss")
        LongTailCheckpointer(model, tmp_path / "new", **arguments).resume_or_load(path, resume=True)
        assert model.roi_heads.box_predictor.cls_loss.steps_done == steps


def test_a_new_training_says_that_there_is_an_earlier_one(tmp_path, caplog):
    """It was meant to be resumed, perhaps; an evaluation has nothing to say."""
    checkpointer = LongTailCheckpointer(torch.nn.Linear(1, 1), str(tmp_path), trainer=torch.nn.Linear(1, 1))
    checkpointer.resume_or_load("", resume=False)
    checkpointer.save("model_0000007", iteration=7)
    LongTailCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)).resume_or_load("", resume=False)
    assert "earlier training" not in caplog.text
    checkpointer.resume_or_load("", resume=False)
    assert "checkpoints of an earlier training, model_0000007.pth last" in caplog.text and "--resume" in caplog.text
