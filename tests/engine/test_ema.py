"""The average of the weights: its formula, what is saved and evaluated, and what a resumed run goes on from."""

import pytest
import torch
from detectron2.utils.env import seed_all_rng

from eql_d2.engine import LongTailCheckpointer, Trainer
from eql_d2.engine.ema import ModelEMA
from eql_d2.errors import InputError

DECAY = 0.75


@pytest.fixture
def ema_cfg(tiny_cfg, datasets, tmp_path):
    def make(folder, *overrides):
        return tiny_cfg(
            *("DATASETS.TRAIN", (datasets[0],), "DATASETS.TEST", (datasets[1],), "OUTPUT_DIR", str(tmp_path / folder)),
            *("MODEL.ROI_HEADS.NAME", "LongTailROIHeads", "MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", "EqualizationLossV2"),
            *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64, "SOLVER.IMS_PER_BATCH", 2),
            *("SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 3, "SOLVER.WARMUP_ITERS", 2),
            *("MODEL_EMA.ENABLED", True, "MODEL_EMA.DECAY", DECAY, *overrides),
        )

    return make


def trainer_of(cfg, resume=False):
    seed_all_rng(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    return trainer


def test_the_formula():
    """By a closed form: the weights of iterations 1 to n count d^(n-i) (1 - d), the first ones d^n."""
    model = torch.nn.Linear(1, 1, bias=False)
    ema = ModelEMA(model, DECAY)
    values = [3.0, 1.0, -2.0, 5.0]
    with torch.no_grad():
        model.weight.fill_(values[0])
        ema.before_train()
        for value in values[1:]:
            model.weight.fill_(value)
            ema.after_step()
    n = len(values) - 1
    expected = DECAY**n * values[0] + sum(DECAY ** (n - i) * (1 - DECAY) * values[i] for i in range(1, n + 1))
    assert ema.averages["weight"].item() == pytest.approx(expected)
    with ema.applied():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == values[-1]


def test_statistics_are_averaged_and_the_state_of_losses_is_not(ema_cfg):
    names = ModelEMA(Trainer.build_model(ema_cfg("names")), DECAY).model
    averaged = ModelEMA(names, DECAY)._names
    assert "backbone.bottom_up.stem.conv1.norm.running_mean" in averaged
    assert not [name for name in averaged if "cls_loss" in name or "num_batches_tracked" in name]
    assert [name for name in names.state_dict() if "cls_loss" in name]


def test_the_average_is_what_is_saved_and_evaluated(ema_cfg, tmp_path):
    cfg = ema_cfg("run")
    trainer = trainer_of(cfg)
    results = trainer.train()
    saved = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    name = "roi_heads.box_predictor.cls_score.weight"
    assert torch.equal(saved["model"][name], trainer.model.state_dict()[name])
    assert not torch.equal(saved["model"][name], saved["trainer"]["hooks"]["ModelEMA"]["trained"][name])

    without = ema_cfg("without", "MODEL_EMA.ENABLED", False)
    trainer_of(without).train()
    plain = torch.load(tmp_path / "without" / "model_final.pth", weights_only=True)["model"]
    assert torch.equal(plain[name], saved["trainer"]["hooks"]["ModelEMA"]["trained"][name])  # training is as without

    model = Trainer.build_model(without)  # a tool that knows nothing of averages
    LongTailCheckpointer(model).load(str(tmp_path / "run" / "model_final.pth"))
    assert str(Trainer.test(without, model)) == str(results)


def test_a_resumed_run_equals_an_uninterrupted_one(ema_cfg, tmp_path):
    trainer_of(ema_cfg("whole")).train()
    stopped = trainer_of(ema_cfg("stopped", "SOLVER.MAX_ITER", 6))
    stopped.max_iter = 3
    stopped._hooks = [hook for hook in stopped._hooks if type(hook).__name__ != "EvalHook"]
    stopped.train()
    resumed = trainer_of(ema_cfg("stopped"), resume=True)
    assert resumed.start_iter == 3
    resumed.train()
    whole, stopped = (torch.load(tmp_path / f / "model_final.pth", weights_only=True) for f in ("whole", "stopped"))
    for state in (lambda c: c["model"], lambda c: c["trainer"]["hooks"]["ModelEMA"]["trained"]):
        assert [k for k, v in state(whole).items() if not torch.equal(v, state(stopped)[k])] == []


def test_a_run_with_averages_does_not_go_on_without(ema_cfg):
    trainer_of(ema_cfg("run", "SOLVER.MAX_ITER", 1)).train()
    with pytest.raises(InputError, match=r"set MODEL_EMA\.ENABLED True"):
        trainer_of(ema_cfg("run", "MODEL_EMA.ENABLED", False), resume=True)


def test_a_decay_that_is_none(ema_cfg):
    with pytest.raises(InputError, match=r"MODEL_EMA.DECAY is 1.0: expected a number in \(0, 1\)"):
        Trainer(ema_cfg("run", "MODEL_EMA.DECAY", 1.0))
