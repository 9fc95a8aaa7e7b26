"""A resumed run equals an uninterrupted one: weights, optimizer, schedule, metrics, data."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase

from eql_d2.data.builtin import register_mini_lvis
from eql_d2.data.mini_lvis import MiniLVISSpec
from eql_d2.engine import Trainer

SPEC = MiniLVISSpec(num_categories=7, num_train_images=30, num_val_images=4, max_image_count=20, min_val_images=1)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    name = "eql_d2_test_resumption"
    register_mini_lvis(name, SPEC, tmp_path_factory.mktemp("datasets") / "mini")
    yield f"{name}_train", f"{name}_val"
    for split in ("train", "val"):
        DatasetCatalog.remove(f"{name}_{split}")
        MetadataCatalog.remove(f"{name}_{split}")


@pytest.fixture
def cfg_of(tiny_cfg, datasets, tmp_path):
    """A function that makes the config of a short run in a folder of its own."""

    def make(folder, *overrides):
        return tiny_cfg(
            "MODEL.ROI_HEADS.NAME", "LongTailROIHeads",
            "MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", "InfluenceBalancedLoss",  # it has state of its own
            "DATASETS.TRAIN", (datasets[0],),
            "DATASETS.TEST", (datasets[1],),
            "INPUT.RANDOM_FLIP", "horizontal",
            "INPUT.MIN_SIZE_TRAIN", (64, 80, 96),
            "INPUT.MIN_SIZE_TEST", 64,
            "SOLVER.IMS_PER_BATCH", 2,
            "SOLVER.MAX_ITER", 24,
            "SOLVER.CHECKPOINT_PERIOD", 4,
            "SOLVER.WARMUP_ITERS", 6,
            "TEST.EVAL_PERIOD", 12,
            "OUTPUT_DIR", str(tmp_path / folder),
            *overrides,
        )  # fmt: skip

    return make


class Killed(BaseException):
    """What no handler sees, as with kill -9."""


class KillAt(HookBase):
    """Ends training at an iteration: before it, or `after_step` of it as a hook in front of evaluation and writers."""

    def __init__(self, iteration):
        self.iteration = iteration

    def after_step(self):
        if self.trainer.iter == self.iteration:
            raise Killed


def train(cfg, resume=False, kill_at=None, place=-1):
    torch.manual_seed(0)  # as detectron2's default_setup does by cfg.SEED: the weights of the beginning
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    if kill_at is not None:
        trainer.register_hooks([KillAt(kill_at)])
        trainer._hooks.insert(place, trainer._hooks.pop())
    try:
        trainer.train()
    except Killed:
        # A killed process writes nothing more.
        pass
    return trainer


def is_time(name):
    return "time" in str(name) or name == "eta_seconds"


def without_times(line):
    return {k: v for k, v in line.items() if not is_time(k)}


def metrics(cfg):
    with open(f"{cfg.OUTPUT_DIR}/metrics.json") as file:
        return [without_times(json.loads(line, parse_constant=str)) for line in file]


def assert_equal(a, b, path="checkpoint"):
    """Equal to the last bit, whatever the containers."""
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            if not is_time(key):
                assert_equal(a[key], b[key], f"{path}[{key!r}]")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b)):
            assert_equal(x, y, f"{path}[{i}]")
    else:
        assert a == b or (a != a and b != b), (path, a, b)


def assert_same_run(cfg, reference):
    assert_equal(*(torch.load(f"{c.OUTPUT_DIR}/model_final.pth", weights_only=True) for c in (cfg, reference)))
    assert metrics(cfg) == metrics(reference)


@pytest.fixture(scope="module")
def references():
    return {}


@pytest.fixture
def reference(cfg_of, references, tmp_path_factory):
    """The config of a run that was not interrupted."""
    if "plain" not in references:
        cfg = cfg_of("reference", "OUTPUT_DIR", str(tmp_path_factory.mktemp("reference")))
        train(cfg)
        references["plain"] = cfg
    return references["plain"]


def test_killed_and_resumed(cfg_of, reference):
    """Killed in the middle, at the iteration of a checkpoint before and after evaluation, and after the writers."""
    cfg = cfg_of("killed")
    train(cfg, kill_at=6)
    assert train(cfg, resume=True, kill_at=11, place=-3).start_iter == 4
    assert train(cfg, resume=True, kill_at=21, place=-1).start_iter == 12
    assert train(cfg, resume=True, kill_at=23, place=-3).start_iter == 20
    assert train(cfg, resume=True).start_iter == 24
    assert_same_run(cfg, reference)
