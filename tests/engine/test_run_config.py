"""The config in a run's folder, and --resume with other settings: what is an error, a line, or the checkpoint's."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import LazyConfig
from detectron2.data import DatasetCatalog

from eql_d2 import get_config_file
from eql_d2.engine import Trainer
from eql_d2.engine.run_config import write_run_config
from eql_d2.engine.setup import setup
from eql_d2.errors import InputError
from eql_d2.evaluation.run_folder import read_run_config

NODE = "MODEL.ROI_BOX_HEAD.CLS_LOSS"


@pytest.fixture
def lines(monkeypatch):
    """The warnings of a resumed config."""
    said = []
    monkeypatch.setattr("eql_d2.engine.run_config.logger.warning", lambda text, *values: said.append(text % values))
    return said


def written(cfg, resumes=True, evaluates=False):
    return Path(write_run_config(cfg, evaluates, resumes))


def test_an_evaluation_writes_a_config_of_its_own(tiny_cfg, tmp_path):
    config = tmp_path / "given.yaml"
    config.write_text(tiny_cfg("MODEL.WEIGHTS", "begin.pth").dump())
    args = Namespace(config_file=str(config), opts=[], eval_only=False, resume=False)
    folder = Path(setup(args).OUTPUT_DIR)
    args.eval_only, args.opts = True, ["MODEL.WEIGHTS", "end.pth"]
    setup(args)
    assert read_run_config(folder)["MODEL"]["WEIGHTS"] == "begin.pth"
    (folder / "config.yaml").unlink()  # as where nothing was trained
    assert read_run_config(folder)["MODEL"]["WEIGHTS"] == "end.pth"


@pytest.mark.parametrize(
    "before, now, both",
    [
        ([f"{NODE}.NAME", "EqualizationLoss"], [f"{NODE}.NAME", "DropLoss"], "EqualizationLoss .* DropLoss"),
        (["MODEL.ROI_HEADS.NAME", "EQLROIHeads"], [f"{NODE}.NAME", "DropLoss"], "EqualizationLoss .* DropLoss"),
        ([], ["MODEL.ROI_HEADS.NAME", "LongTailCascadeROIHeads"], "LongTailROIHeads .* LongTailCascadeROIHeads"),
        ([], ["MODEL.ROI_HEADS.NUM_CLASSES", 8], "NUM_CLASSES was 7 .* 8"),
        ([], ["MODEL.RESNETS.DEPTH", 101], "DEPTH was .* 101"),
        ([], ["MODEL.ROI_BOX_HEAD.FC_DIM", 3], "FC_DIM was .* 3"),
        ([], ["MODEL.FREEZE", ["backbone"]], r"FREEZE was \[\] .* \['backbone'\]"),
        ([], ["MODEL_EMA.ENABLED", True], "MODEL_EMA.ENABLED was False .* True"),
    ],
)
def test_what_must_stay_is_one_error_that_names_both(tiny_cfg, before, now, both):
    before = ["MODEL.ROI_HEADS.NAME", "LongTailROIHeads", *before]
    path = written(tiny_cfg(*before), resumes=False)
    text = path.read_text()
    now = ["MODEL.ROI_HEADS.NAME", "LongTailROIHeads", *now]
    with pytest.raises(InputError, match=rf"{both} now: resume with the settings of .*config\.yaml") as error:
        written(tiny_cfg(*now))
    assert "\n" not in str(error.value)
    assert path.read_text() == text and [p.name for p in path.parent.iterdir()] == ["config.yaml"]
    written(tiny_cfg(*now), resumes=False)  # a new run may be anything


def test_what_may_change_is_a_line_and_what_the_checkpoint_decides_another(tiny_cfg, lines):
    old = ["SOLVER.BASE_LR", 0.02, "SEED", 1, "MODEL.ROI_HEADS.NAME", "EQLROIHeads"]
    new = ["SOLVER.BASE_LR", 0.01, "SEED", 2, "MODEL.ROI_HEADS.NAME", "LongTailROIHeads"]
    written(tiny_cfg(*old), resumes=False)
    written(tiny_cfg(*new, f"{NODE}.NAME", "EqualizationLoss", "OUTPUT_DIR", tiny_cfg().OUTPUT_DIR))
    assert lines == [
        "--resume: SEED is 2, but the run began with 1, and goes on from its checkpoint",
        "--resume: from here on SOLVER.BASE_LR is 0.01, it was 0.02",
    ]
    written(tiny_cfg(*new, f"{NODE}.NAME", "EqualizationLoss"))
    assert len(lines) == 2


@pytest.mark.parametrize("content", [b"MODEL: [", b"\xff\xfe", b"a text"])
def test_a_config_that_is_broken_names_the_cure(tiny_cfg, content):
    path = written(tiny_cfg())
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"config\.yaml .*restore the file, or remove it to go on without"):
        written(tiny_cfg())
    path.unlink()
    assert read_run_config(written(tiny_cfg()).parent)["MODEL"]


def test_keys_of_another_version_are_no_change(tiny_cfg, lines):
    path = written(tiny_cfg(), resumes=False)
    config = yaml.safe_load(path.read_text())
    del config["MODEL_EMA"]
    config["SOLVER"]["OF_ANOTHER_VERSION"] = 1
    path.write_text(yaml.safe_dump(config))
    written(tiny_cfg())
    assert lines == []


def test_a_lazy_config(tmp_path, lines):
    def cfg(*overrides):
        cfg = LazyConfig.load(get_config_file("lazy/mini_lvis_eql.py"))
        return LazyConfig.apply_overrides(cfg, [f"train.output_dir={tmp_path}", *overrides])

    assert written(cfg(), resumes=False).is_file()
    written(cfg("train.max_iter=7"))
    assert len(lines) == 1 and lines[0].startswith("--resume: from here on train.max_iter is 7")
    with pytest.raises(InputError, match=r"cls_loss\._target_ was .*EqualizationLoss .*DropLoss now"):
        written(cfg("model.roi_heads.box_predictor.cls_loss._target_=eql_d2.losses.DropLoss"))


@pytest.fixture
def trainer_of(tiny_cfg, datasets):
    """A function that makes a trainer in one folder."""
    options = ["DATASETS.TRAIN", (datasets[0],), "DATASETS.TEST", (), "SOLVER.IMS_PER_BATCH", 1]
    options += ["MODEL.ROI_HEADS.NAME", "EQLROIHeads", "SOLVER.WARMUP_ITERS", 0, "SOLVER.STEPS", (5,)]
    options += ["SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR", "SOLVER.CLASSIFIER_LR_FACTOR", 1.0]
    DatasetCatalog.get(datasets[0])
    return lambda *overrides: Trainer(tiny_cfg(*options, *overrides))


def test_another_learning_rate_holds_from_the_first_iteration(trainer_of):
    first = trainer_of("SOLVER.BASE_LR", 0.02, "SOLVER.MAX_ITER", 1)
    first.train()
    momentum = first.optimizer.state_dict()["state"]
    second = trainer_of("SOLVER.BASE_LR", 0.002, "SOLVER.WEIGHT_DECAY", 0.5, "SOLVER.MAX_ITER", 9)
    second.resume_or_load(resume=True)
    assert second.start_iter == 1
    assert learning_rates(second) == [0.002]
    assert {group["weight_decay"] for group in second.optimizer.param_groups} >= {0.5}
    assert torch.equal(second.optimizer.state_dict()["state"][0]["momentum_buffer"], momentum[0]["momentum_buffer"])
    for _ in range(5):
        second.scheduler.step()
    assert learning_rates(second) == [pytest.approx(0.0002)]


def learning_rates(trainer):
    return sorted({group["lr"] for group in trainer.optimizer.param_groups})


def save_foreign(trainer, **content):
    folder = Path(trainer.cfg.OUTPUT_DIR)
    folder.mkdir(exist_ok=True)
    torch.save({"model": trainer.model.state_dict(), **content}, folder / "model_0000006.pth")
    (folder / "last_checkpoint").write_text("model_0000006.pth")


def test_a_checkpoint_of_another_trainer_gives_its_iteration(trainer_of, caplog):
    """As the original project's, and Detectron2's before its trainer had a state."""
    trainer = trainer_of("SOLVER.MAX_ITER", 9, "SOLVER.BASE_LR", 0.02)
    save_foreign(trainer, iteration=6, optimizer={}, scheduler={})
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 7 and learning_rates(trainer) == [pytest.approx(0.002)]
    assert "goes on after its iteration 6, with an optimizer that starts anew" in caplog.text


@pytest.mark.parametrize("content", [{}, {"iteration": "six"}])
def test_weights_alone_are_not_resumed(trainer_of, content):
    trainer = trainer_of()
    save_foreign(trainer, **content)
    with pytest.raises(InputError, match=r"nor an iteration.*without --resume, by MODEL\.WEIGHTS .*0000006\.pth"):
        trainer.resume_or_load(resume=True)


@pytest.mark.parametrize(
    "overrides, says",
    [
        (["MODEL.ROI_HEADS.NAME", "SoftmaxEQLROIHeads"], r"cls_score.weight of shape \(7, .*\) there and \(8, "),
        (["MODEL.MASK_ON", True], "it has no roi_heads.mask_head"),
    ],
)
def test_a_checkpoint_of_another_model_is_one_error(trainer_of, overrides, says):
    """Also where there is no config.yaml to compare with."""
    first = trainer_of()
    first.checkpointer.save("model_0000006", iteration=6)
    with pytest.raises(InputError, match=f"is of another model.*{says}.*without --resume"):
        trainer_of(*overrides).resume_or_load(resume=True)


def test_another_optimizer_is_one_error(trainer_of):
    trainer_of().checkpointer.save("model_0000006", iteration=6)
    with pytest.raises(InputError, match="optimizer's state in the checkpoint does not fit.*config.yaml"):
        trainer_of("SOLVER.CLASSIFIER_LR_FACTOR", 2.0).resume_or_load(resume=True)
