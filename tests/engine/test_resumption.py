"""A resumed run equals an uninterrupted one: weights, optimizer, schedule, metrics, data."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.data import DatasetMapper
from detectron2.engine import HookBase

from eql_d2.engine import DataError, Interrupted, Trainer
from eql_d2.engine.resumption import move_later_lines
from eql_d2.errors import InputError

LAZY = Path(__file__).parents[2] / "configs" / "lazy" / "mini_lvis_eql.py"


@pytest.fixture
def cfg_of(tiny_cfg, datasets, tmp_path):
    """A function that makes the config of a short run in a folder of its own."""

    def make(folder, *overrides):
        return tiny_cfg(
            *("MODEL.ROI_HEADS.NAME", "LongTailROIHeads"),
            *("MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", "InfluenceBalancedLoss"),  # it has state of its own
            *("DATASETS.TRAIN", (datasets[0],), "DATASETS.TEST", (datasets[1],)),
            *("INPUT.RANDOM_FLIP", "horizontal", "INPUT.MIN_SIZE_TRAIN", (64, 80, 96), "INPUT.MIN_SIZE_TEST", 64),
            *("SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 24, "SOLVER.CHECKPOINT_PERIOD", 4),
            *("SOLVER.WARMUP_ITERS", 6),
            *("TEST.EVAL_PERIOD", 12),
            *("OUTPUT_DIR", str(tmp_path / folder)),
            *overrides,
        )

    return make


BATCH_NORM = ("running_mean", "running_var", "num_batches_tracked")


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
    """The lines of metrics.json without clocks, which may have a line of their own."""
    with open(f"{cfg.OUTPUT_DIR}/metrics.json") as file:
        lines = [without_times(json.loads(line, parse_constant=str)) for line in file]
    return [line for line in lines if line.keys() != {"iteration"}]


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


class SignalAt(HookBase):
    """Sends this process a signal in the middle of an iteration."""

    def __init__(self, iteration, signum):
        self.iteration, self.signum = iteration, signum

    def before_step(self):
        if self.trainer.iter == self.iteration:
            os.kill(os.getpid(), self.signum)


def train_with_signal(cfg, iteration, signum, resume=True):
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.register_hooks([SignalAt(iteration, signum)])
    with pytest.raises(Interrupted) as stop:
        trainer.train()
    return trainer, stop.value


def test_stopped_by_signals_and_resumed(cfg_of, reference, tmp_path, monkeypatch, caplog):
    """In an iteration, in evaluation, at the last iteration: nothing is lost."""
    handler = signal.getsignal(signal.SIGINT)  # Python's, or none in a shell's background
    cfg = cfg_of("stopped")
    _, stop = train_with_signal(cfg, 9, signal.SIGTERM)
    assert stop.code == 143
    assert "stopped by SIGTERM after iteration 9; checkpoint: " in caplog.text
    folder = tmp_path / "stopped"
    assert (folder / "last_checkpoint").read_text() == "model_0000009.pth"

    # In the evaluation behind iteration 11, for which no checkpoint is due.
    cfg.SOLVER.CHECKPOINT_PERIOD = 1000
    monkeypatch.setattr(Trainer, "build_evaluator", lambda *args: os.kill(os.getpid(), signal.SIGINT))
    torch.manual_seed(1)  # other weights, which the checkpoint replaces
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    with pytest.raises(Interrupted) as stop:
        trainer.train()
    monkeypatch.undo()
    assert trainer.start_iter == 10 and stop.value.code == 130
    assert (folder / "last_checkpoint").read_text() == "model_0000011.pth"
    assert signal.getsignal(signal.SIGINT) is handler

    # When the evaluation's results have been written.
    cfg.SOLVER.CHECKPOINT_PERIOD = 4
    train_with_signal(cfg, 21, signal.SIGTERM)

    # Of the last iteration only evaluation is left.
    trainer, stop = train_with_signal(cfg, 23, signal.SIGTERM)
    assert trainer.start_iter == 22 and stop.code == 143
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    assert train(cfg, resume=True).start_iter == 24
    assert_same_run(cfg, reference)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stopped_by_an_image_that_cannot_be_read(cfg_of, monkeypatch, num_workers):
    """Nothing is lost, and when it is mended the run ends as if nothing had been; with two batches an iteration."""
    options = [
        *("SOLVER.ACCUMULATE_STEPS", 2, "SOLVER.CHECKPOINT_PERIOD", 1000, "SOLVER.MAX_ITER", 21),
        *("DATASETS.TEST", ()),
        *("DATALOADER.NUM_WORKERS", num_workers),
    ]
    whole, stopped = cfg_of("whole", *options), cfg_of("stopped", *options)
    train(whole)
    mapped = DatasetMapper.__call__

    def all_but_one(self, dataset_dict):
        if dataset_dict["image_id"] == broken:
            raise OSError("broken data stream")
        return mapped(self, dataset_dict)

    loader = iter(Trainer.build_train_loader(stopped))
    batches = [next(loader) for _ in range(12)]
    broken = batches[11][0]["image_id"]  # the second batch of iteration 5, or before
    first = next(i for i, batch in enumerate(batches) if broken in [image["image_id"] for image in batch])
    assert first > 1
    monkeypatch.setattr(DatasetMapper, "__call__", all_but_one)
    with pytest.raises(DataError, match=f"^image {broken}, .*png, cannot be used: broken data stream"):
        train(stopped)
    monkeypatch.undo()
    last = Path(stopped.OUTPUT_DIR) / "last_checkpoint"
    assert last.read_text() == f"model_{first // 2 - 1:07d}.pth"
    assert train(stopped, resume=True).start_iter == first // 2
    assert_same_run(stopped, whole)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_evaluation_that_fails_loses_nothing(cfg_of, monkeypatch, num_workers):
    mapped = DatasetMapper.__call__

    def fails_at_testing(self, dataset_dict):
        if not self.is_train:
            raise OSError("broken data stream")
        return mapped(self, dataset_dict)

    options = ["SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 1000, "TEST.EVAL_PERIOD", 2]
    cfg = cfg_of("failed", *options, "DATALOADER.NUM_WORKERS", num_workers)
    monkeypatch.setattr(DatasetMapper, "__call__", fails_at_testing)
    with pytest.raises(InputError, match=r"^image \d+, .*png, cannot be used: broken data stream") as error:
        train(cfg)
    assert "\n" not in str(error.value)
    assert (Path(cfg.OUTPUT_DIR) / "last_checkpoint").read_text() == "model_0000001.pth"


def test_neither_evaluation_nor_workers_change_training(cfg_of, reference):
    cfg = cfg_of("other", "TEST.EVAL_PERIOD", 5, "DATALOADER.NUM_WORKERS", 2)
    train(cfg)
    final = [torch.load(f"{c.OUTPUT_DIR}/model_final.pth", weights_only=True) for c in (cfg, reference)]
    assert_equal(final[0]["model"], final[1]["model"])
    assert_equal(final[0]["trainer"]["_trainer"], final[1]["trainer"]["_trainer"])


def test_precise_bn_resumes_and_changes_batch_norm_alone(cfg_of):
    options = [
        *("TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2),
        *("SOLVER.MAX_ITER", 7, "SOLVER.CHECKPOINT_PERIOD", 3),
        *("TEST.EVAL_PERIOD", 2),
        *("DATASETS.TEST", ()),
    ]
    whole, killed, without = cfg_of("whole", *options), cfg_of("killed", *options), cfg_of("without", *options)
    train(whole)
    train(killed, kill_at=4)
    assert train(killed, resume=True).start_iter == 3
    assert_same_run(killed, whole)
    without.TEST.PRECISE_BN.ENABLED = False
    train(without)
    weights, plain = (
        torch.load(f"{c.OUTPUT_DIR}/model_final.pth", weights_only=True)["model"] for c in (whole, without)
    )
    changed = {name for name in weights if not torch.equal(weights[name], plain[name])}
    assert changed and all(name.endswith(BATCH_NORM) for name in changed)


def test_a_checkpoint_of_detectron2_alone(cfg_of, caplog):
    """Without the state that this package adds."""
    cfg = cfg_of("old", "SOLVER.MAX_ITER", 6, "DATASETS.TEST", ())
    train(cfg, kill_at=4)
    path = f"{cfg.OUTPUT_DIR}/model_0000003.pth"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["trainer"]["hooks"]["Resumption"]
    torch.save(checkpoint, path)
    assert train(cfg, resume=True).start_iter == 4
    assert "the training data starts anew" in caplog.text


def test_gradient_accumulation_is_counted_in_batches(cfg_of):
    """Two batches an iteration, as a step that accumulates takes them."""
    cfg = cfg_of("accumulate", "SOLVER.MAX_ITER", 4, "DATASETS.TEST", ())
    trainer = Trainer(cfg)
    step = trainer._trainer.run_step
    trainer._trainer.run_step = lambda: (next(trainer._trainer._data_loader_iter), step())
    trainer.train()
    state = torch.load(f"{cfg.OUTPUT_DIR}/model_final.pth", weights_only=True)["trainer"]["hooks"]
    assert state["Resumption"]["stream"]["batches"] == 8


def test_a_lazy_config_resumes_exactly(datasets, tmp_path):
    def train_lazy(folder, resume=False, stop_at=None):
        cfg = LazyConfig.load(str(LAZY))
        cfg.dataloader.train.dataset.names, cfg.dataloader.test.dataset.names = datasets
        cfg.dataloader.evaluator.dataset_name = datasets[1]
        cfg.dataloader.train.update(total_batch_size=2, seed=3)
        cfg.model.roi_heads.num_classes = 7
        cfg.model.roi_heads.box_predictor.cls_loss.frequencies.name = datasets[0]
        cfg.train.update(max_iter=8, init_checkpoint="", output_dir=str(tmp_path / folder), device="cpu")
        cfg.train.checkpointer.period = 3
        torch.manual_seed(0)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume)
        if stop_at:
            trainer.register_hooks([SignalAt(stop_at, signal.SIGTERM)])
        trainer.train()
        return torch.load(tmp_path / folder / "model_final.pth", weights_only=True)["model"]

    whole = train_lazy("whole")
    with pytest.raises(Interrupted):
        train_lazy("stopped", stop_at=4)
    assert (tmp_path / "stopped" / "last_checkpoint").read_text() == "model_0000004.pth"
    assert_equal(train_lazy("stopped", resume=True), whole)


def test_lines_of_later_iterations_are_moved_not_lost(tmp_path):
    file = tmp_path / "metrics.json"
    lines = [f'{{"iteration": {i}}}\n' for i in (19, 999, 19, 39, 59, 60)] + ['{"iterat']
    file.write_text("".join(lines))
    move_later_lines(str(file), 39)
    assert file.read_text() == "".join(lines[:4])  # 999 is of an earlier run in the folder
    assert (tmp_path / "metrics_before_resume.json").read_text() == "".join(lines[4:]) + "\n"
    move_later_lines(str(file), 39)
    assert file.read_text() == "".join(lines[:4])


def test_killed_and_resumed(cfg_of, reference):
    """Killed in the middle, at the iteration of a checkpoint before and after evaluation, and after the writers."""
    cfg = cfg_of("killed")
    train(cfg, kill_at=6)
    assert train(cfg, resume=True, kill_at=11, place=-3).start_iter == 4
    assert train(cfg, resume=True, kill_at=21, place=-1).start_iter == 12
    assert train(cfg, resume=True, kill_at=23, place=-3).start_iter == 20
    assert train(cfg, resume=True).start_iter == 24
    assert_same_run(cfg, reference)


def test_a_final_checkpoint_that_was_not_written(cfg_of, reference, caplog):
    """Killed, or the disk full, between the last iteration's checkpoint and model_final.pth."""
    cfg = cfg_of("no_final")
    shutil.copytree(reference.OUTPUT_DIR, cfg.OUTPUT_DIR)
    folder = Path(cfg.OUTPUT_DIR)
    (folder / "model_final.pth").unlink()
    (folder / "last_checkpoint").write_text("model_0000023.pth")
    assert train(cfg, resume=True).start_iter == 24
    assert_same_run(cfg, reference)
    cfg.SOLVER.MAX_ITER = 20
    train(cfg, resume=True)
    assert "iteration 24, and the run ends at 20. To train on, raise SOLVER.MAX_ITER" in caplog.text


def test_a_checkpoint_before_training(cfg_of):
    """With Detectron2's hooks alone it can be saved, and resumed from, too."""
    cfg = cfg_of("before")
    torch.manual_seed(0)
    Trainer(cfg).checkpointer.save("init")
    assert torch.load(f"{cfg.OUTPUT_DIR}/init.pth", weights_only=True)["model"]
