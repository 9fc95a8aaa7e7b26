"""Weights of others: crafted files do nothing, those that do not fit are an error, and a live run's files stay."""

import pickle
import zipfile

import numpy as np
import pytest
import torch
from detectron2.utils.file_io import PathManager

from eql_d2.engine import LongTailCheckpointer, load_config
from eql_d2.engine.checkpoint import require_plain_pickle
from eql_d2.errors import InputError


class State:
    """Pickles as a dtype that is given a state."""

    def __init__(self, dtype, state):
        self.dtype, self.state = dtype, state

    def __reduce__(self):
        return np.dtype, (self.dtype, False, True), self.state


@pytest.mark.parametrize(
    "content",
    [
        State("f8", (3, "<", None, None, None, -1, -1, 63)),  # flags of objects: numbers are taken for pointers
        State("f8", (3, "<", None, None, None, 1 << 20, -1, 0)),
        State("f8", (3, "<", None, ("a",), {"a": (np.dtype("f8"), 0)}, 8, 1, 0)),
        State("O", (3, "|", None, None, None, -1, -1, 63)),
        np.array([{}], object),
        print,
    ],
)
def test_a_crafted_pickle(tmp_path, content):
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"model": content}))
    with pytest.raises(InputError, match="weights.pkl is no checkpoint of tensors and plain Python"):
        require_plain_pickle(str(path))


@pytest.mark.parametrize("bytes_", [b"", b"\x80\x04N", b"\x80\x02K\x01K\x02R.", b"\x80\x04\x8e" + b"\xff" * 8])
def test_a_broken_pickle(tmp_path, bytes_):
    (tmp_path / "weights.pkl").write_bytes(bytes_)
    with pytest.raises(InputError, match="weights.pkl is no checkpoint"):
        require_plain_pickle(str(tmp_path / "weights.pkl"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_model_zoos_pickle_loads(tmp_path, protocol):
    model = torch.nn.Linear(3, 2)
    weights = {"weight": np.arange(6, dtype="f4").reshape(2, 3), "bias": np.ones(2, ">f4").astype("f4")}
    others = [np.float32(1), np.array(["a", "bc"]), np.array([b"x"]), np.array([True])]
    content = {"model": weights, "__author__": "a", "others": others}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, protocol))
    LongTailCheckpointer(model).load(str(tmp_path / "w.pkl"))
    assert torch.equal(model.weight.data, torch.arange(6.0).reshape(2, 3))


def test_a_zip_bomb(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("bomb/data.pkl", bytes(1 << 20))
    with pytest.raises(InputError, match="compressed members"):
        LongTailCheckpointer(torch.nn.Linear(1, 1)).load(str(path))


def test_weights_of_mmdetection(tmp_path):
    """Its file, and its bare state dict; neither evaluates random weights."""
    weights = {"neck.fpn_convs.0.conv.weight": torch.ones(2), "roi_head.bbox_head.0.fc_cls.weight": torch.ones(2)}
    for name, content in (("whole", {"meta": {"epoch": 12}, "state_dict": weights}), ("bare", weights)):
        path = str(tmp_path / f"{name}.pth")
        torch.save(content, path)
        with pytest.raises(InputError, match="2 of its 2 parameters.*names of mmdetection"):
            LongTailCheckpointer(torch.nn.Linear(3, 2)).resume_or_load(path, resume=False)


def test_a_part_that_is_missing(tmp_path):
    """Evaluation needs all of the parameters; a training may start from a backbone."""
    path, model = str(tmp_path / "part.pth"), torch.nn.Linear(3, 2)
    torch.save({"model": {"weight": torch.ones(2, 3)}}, path)
    with pytest.raises(InputError, match="1 of its 2 parameters.*bias"):
        LongTailCheckpointer(model).resume_or_load(path, resume=False)
    LongTailCheckpointer(model, trainer=torch.nn.Identity()).resume_or_load(path, resume=False)
    assert (model.weight == 1).all()


def test_weights_of_which_hardly_any_fit(tmp_path):
    """One of 20, as of torchvision's detectors, is no start for a training; a backbone, or a part alone, is."""
    model = torch.nn.ModuleDict({name: torch.nn.Linear(3, 2) for name in ("backbone", *map(str, range(9)))})
    theirs = {f"body.{i}": torch.ones(2) for i in range(30)}
    path = str(tmp_path / "c.pth")
    for fits, enough in ((theirs, False), ({}, True), ({**theirs, "backbone.bias": torch.ones(2)}, True)):
        torch.save({**fits, "0.weight": torch.ones(2, 3), "backbone.weight": torch.ones(2, 3)}, path)
        checkpointer = LongTailCheckpointer(model, trainer=torch.nn.Identity())
        if enough:
            checkpointer.resume_or_load(path, resume=False)
        else:
            with pytest.raises(InputError, match="18 of its 20 parameters"):
                checkpointer.resume_or_load(path, resume=False)


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module._orig_mod."])
def test_what_a_model_was_wrapped_in(tmp_path, prefix, caplog):
    """DistributedDataParallel, Lightning, torch.compile; and averages beside the weights are said not to be read."""
    model, path = torch.nn.Linear(3, 2), str(tmp_path / "c.pth")
    weights = {f"{prefix}{name}": torch.full_like(value, 3) for name, value in model.state_dict().items()}
    torch.save({"model": weights, "model_ema": weights}, path)
    LongTailCheckpointer(model).resume_or_load(path, resume=False)
    own = torch.nn.ModuleDict({"model": torch.nn.Linear(3, 2)})  # of that name
    torch.save(own.state_dict(), path)
    LongTailCheckpointer(own).resume_or_load(path, resume=False)
    assert (model.weight == 3).all() and "under model and under model_ema: the former are read" in caplog.text


def test_a_resume_that_finds_nothing_says_so(tmp_path, caplog):
    LongTailCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)).resume_or_load("", resume=True)
    assert f"there is no checkpoint in {tmp_path} to resume from" in caplog.text


def test_only_a_training_removes_unfinished_files(tmp_path):
    live = tmp_path / "model_0000001.pth.tmp"
    live.touch()
    model = torch.nn.Linear(1, 1)
    LongTailCheckpointer(model, str(tmp_path)).resume_or_load("", resume=True)
    assert live.exists()
    LongTailCheckpointer(model, str(tmp_path), trainer=torch.nn.Identity()).resume_or_load("", resume=True)
    assert not live.exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/../../x.yaml", "https://h/a/../../../x.yaml"])
def test_a_url_that_leaves_the_cache(tmp_path, url):
    (tmp_path / "c.yaml").write_text(f"_BASE_: '{url}'\n")
    with pytest.raises(InputError, match="outside of the cache folder"):
        load_config(str(tmp_path / "c.yaml"))
    with pytest.raises(InputError, match="outside of the cache folder"):
        PathManager.get_local_path(url)


WEIGHT = torch.zeros(1, 1)


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize(
    "content, found",
    [
        ([1, 2], "list"),
        (None, "NoneType"),
        ({}, "nothing"),
        ({"model": 3}, "int"),
        ({"model": {}}, "nothing"),
        ({"model": {"weight": "a", "bias": "b"}}, "str 'weight'"),
        ({"model": {1: WEIGHT}}, "Tensor 1"),
        ({"model": {"weight": {"a": 1}}}, "dict 'weight'"),
        ({"model": {"weight": WEIGHT.to_sparse()}}, "Tensor 'weight'"),
        ({"model": {"weight": WEIGHT.to(torch.complex64)}}, "Tensor 'weight'"),
        ({"model": {"weight": WEIGHT.to("meta")}}, "Tensor 'weight'"),
        ({"blobs": 3}, "int 'blobs'"),
    ],
)
def test_a_file_of_something_else(tmp_path, content, found, resume):
    torch.save(content, tmp_path / "x.pth")
    (tmp_path / "last_checkpoint").write_text("x.pth")
    with pytest.raises(InputError, match=f"x.pth holds no weights: .* got {found}"):
        LongTailCheckpointer(torch.nn.Linear(1, 1), str(tmp_path)).resume_or_load(f"{tmp_path}/x.pth", resume=resume)


@pytest.mark.parametrize("content", [[1], None, {}, {"model": 3}, {"model": {"weight": "x"}}, {"blobs": 3}, {"a": "b"}])
def test_a_pickle_of_something_else(tmp_path, content):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=r"x.pkl holds no weights: expected tensors of numbers by name"):
        LongTailCheckpointer(torch.nn.Linear(1, 1)).load(str(tmp_path / "x.pkl"))


@pytest.mark.parametrize("bytes_", [b"", b"hello\n", b"<!DOCTYPE html>", b"PK\x03\x04" + bytes(300), bytes(300)])
@pytest.mark.parametrize("name", ["x.pth", "x.pyth", "x"])
def test_a_file_that_torch_did_not_write(tmp_path, bytes_, name):
    (tmp_path / name).write_bytes(bytes_)
    with pytest.raises(InputError, match=f"{tmp_path / name} is no (file of torch.save, or damaged|checkpoint of)"):
        LongTailCheckpointer(torch.nn.Linear(1, 1)).load(str(tmp_path / name))


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(InputError, match=f"the weights {tmp_path} are not here: that is a folder"):
        LongTailCheckpointer(torch.nn.Linear(1, 1)).load(str(tmp_path))


def test_weights_that_are_no_numbers_are_a_line(tmp_path, caplog):
    model = torch.nn.Linear(1, 1)
    torch.save({"model": {"weight": WEIGHT / 0, "bias": torch.zeros(1)}}, tmp_path / "x.pth")
    LongTailCheckpointer(model).load(str(tmp_path / "x.pth"))
    assert "x.pth has NaN or infinite values in 1 of its tensors, weight first" in caplog.text
