"""The training step in one process; tests/engine/test_processes.py has it in two."""

import copy
import itertools
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.engine import SimpleTrainer, TrainerBase, hooks
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from eql_d2 import CLS_LOSS_REGISTRY, get_config_file
from eql_d2.engine import DataError, Trainer, TrainStep
from eql_d2.engine.train_step import (
    MAX_SKIPPED_IN_A_ROW,
    last_line,
    micro_batch_size,
    mixed_precision,
)
from eql_d2.losses import LateStart, SoftmaxFocalLoss, SoftmaxLoss
from speed.training_step import Kernels


class Regression(nn.Module):
    """Two losses that are means over a batch of (x, y) pairs; x of 2 numbers."""

    def __init__(self, norm=False):
        super().__init__()
        self.norm = nn.BatchNorm1d(2) if norm else nn.Identity()
        self.linear = nn.Linear(2, 1)

    def forward(self, data):
        x, y = (torch.stack(column) for column in zip(*data))
        error = self.linear(self.norm(x))[:, 0] - y
        return {"loss_square": (error**2).mean(), "loss_abs": error.abs().mean()}


def pairs(count, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 2, generator=generator, dtype=dtype), torch.randn(count, generator=generator, dtype=dtype)
    return list(zip(x, y))


def a_step(model, batches, lr=0.1, **arguments):
    step = TrainStep(model, batches, torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9), **arguments)
    if step.grad_scaler.is_enabled():  # else it would skip steps until it has found such a factor
        step.grad_scaler = torch.amp.GradScaler("cpu", init_scale=256)
    return step


def run(step, steps):
    """The EventStorage of these steps."""
    with EventStorage(step.iter) as storage:
        for _ in range(steps):
            step.run_step()
            step.iter += 1
            storage.step()
    return storage


def state(module):
    return copy.deepcopy(module.state_dict())


def images():
    """Two images of 96 px with three objects, for a detector of seven classes."""
    generator = torch.Generator().manual_seed(0)
    instances = Instances((96, 96))
    instances.gt_boxes = Boxes(torch.tensor([[4.0, 4, 40, 40], [50, 8, 90, 44], [20, 52, 60, 92]]))
    instances.gt_classes = torch.tensor([0, 3, 6])
    shape = {"height": 96, "width": 96, "instances": instances}
    return [{"image": 255 * torch.rand(3, 96, 96, generator=generator), **shape} for _ in range(2)]


def detector_steps(cfg, step_class, steps=3, **arguments):
    """A detector after some steps, its optimizer, and what was logged."""
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    step = step_class(model, itertools.repeat(images()), optimizer, **arguments)
    torch.manual_seed(1)
    storage = run(step, steps)
    return model, optimizer, storage


@pytest.mark.parametrize("zero_grad_before_forward", [False, True])
def test_in_full_precision_it_is_detectron2s_bit_for_bit(tiny_cfg, zero_grad_before_forward):
    cfg = tiny_cfg("MODEL.ROI_HEADS.NAME", "EQLROIHeads")
    arguments = {"zero_grad_before_forward": zero_grad_before_forward}
    ours, theirs = (detector_steps(cfg, c, **arguments) for c in (TrainStep, SimpleTrainer))
    for one, other in zip(ours[:2], theirs[:2]):
        torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)
    times = ("data_time", "rank_data_time")
    for name, (value, iteration) in theirs[2].latest().items():
        assert name in times or ours[2].latest()[name] == (value, iteration)
    assert ours[2].latest().keys() == theirs[2].latest().keys()


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_accumulation_is_the_step_of_the_joined_batch(micro_batches):
    model, data = Regression().double(), pairs(8, torch.float64)
    one, parts = copy.deepcopy(model), copy.deepcopy(model)
    size = len(data) // micro_batches
    split = [data[i : i + size] for i in range(0, len(data), size)]
    logged = run(a_step(one, itertools.repeat(data)), 3)
    logged_parts = run(a_step(parts, itertools.cycle(split), accumulate_steps=micro_batches), 3)
    torch.testing.assert_close(parts.state_dict(), one.state_dict(), rtol=1e-12, atol=1e-12)
    assert not torch.equal(parts.linear.weight, model.linear.weight)
    for name in ("total_loss", "loss_square", "loss_abs"):
        history, expected = logged_parts.history(name).values(), logged.history(name).values()
        assert [i for _, i in history] == [0, 1, 2]  # one value a step, not one a micro-batch
        assert [v for v, _ in history] == pytest.approx([v for v, _ in expected], rel=1e-12)


@pytest.mark.parametrize("name", sorted(name for name, _ in CLS_LOSS_REGISTRY))
def test_every_loss_is_finite_in_bf16(tiny_cfg, name):
    cfg = tiny_cfg("MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", name)
    seen = []
    model, _, storage = detector_steps(cfg, TrainStep, steps=2, precision=torch.bfloat16)
    model.roi_heads.box_predictor.cls_score.register_forward_hook(lambda m, i, output: seen.append(output.dtype))
    with EventStorage(), torch.autocast("cpu", torch.bfloat16):
        model(images())
    assert seen == [torch.bfloat16]  # autocast does reach the classifier
    assert storage.count_samples("loss_cls") == 2 and "skipped_steps" not in storage.latest()
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_mixed_precision_is_near_full_precision(precision):
    """fp16's logic, with its GradScaler, on the CPU; a run in fp16 needs a GPU."""
    model, data = Regression(), pairs(32)
    full, mixed = copy.deepcopy(model), copy.deepcopy(model)
    run(a_step(full, itertools.repeat(data)), 5)
    step = a_step(mixed, itertools.repeat(data), precision=precision)
    run(step, 5)
    assert step.grad_scaler.is_enabled() == (precision is torch.float16) and step.skipped_steps == 0
    assert mixed.linear.weight.dtype == torch.float32
    assert not torch.equal(mixed.linear.weight, full.linear.weight)
    torch.testing.assert_close(mixed.state_dict(), full.state_dict(), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spoiled", ["loss", "gradient"])
def test_an_overflow_is_skipped(precision, spoiled, caplog):
    """The model is as it was, also the statistics that its forward spoils; the next step goes on."""
    model, data = Regression(norm=True), pairs(8)
    bad = [(x * float("inf"), y) for x, y in data] if spoiled == "loss" else data
    step = a_step(model, iter([data, bad, data]), precision=precision)
    run(step, 1)
    if spoiled == "gradient":
        handle = model.linear.weight.register_hook(lambda gradient: gradient * float("inf"))
    before, momentum, scale = state(model), state(step.optimizer), step.grad_scaler.get_scale()
    logger = logging.getLogger("eql_d2.engine.train_step")
    logger.addHandler(caplog.handler)
    storage = run(step, 1)
    logger.removeHandler(caplog.handler)
    after = state(model)
    counted = "norm.num_batches_tracked"
    assert after.pop(counted) == before.pop(counted) + 1
    torch.testing.assert_close((after, state(step.optimizer)), (before, momentum), rtol=0, atol=0)
    assert storage.latest()["skipped_steps"] == (1, 1)
    assert "iteration 1 is skipped" in caplog.text
    if precision is torch.float16 and spoiled == "gradient":
        assert step.grad_scaler.get_scale() == scale / 2
    if spoiled == "gradient":
        handle.remove()
    storage = run(step, 1)
    assert "skipped_steps" not in storage.latest()
    assert not torch.equal(model.linear.weight, before["linear.weight"])
    assert all(x.isfinite().all() for x in model.state_dict().values())


def test_many_overflows_in_a_row_stop_training():
    model, data = Regression(), pairs(8)
    step = a_step(model, itertools.repeat(data))
    model.linear.bias.register_hook(lambda gradient: gradient * float("nan"))
    before = state(model)
    run(step, MAX_SKIPPED_IN_A_ROW - 1)
    with pytest.raises(FloatingPointError, match=f"infinite or NaN {MAX_SKIPPED_IN_A_ROW} time"):
        run(step, 1)
    torch.testing.assert_close(state(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("period", [1, 100])
def test_a_loss_that_is_nan_stops_full_precision_at_once(period):
    model = Regression()
    step = a_step(model, itertools.repeat([(x * float("nan"), y) for x, y in pairs(8)]), gather_metric_period=period)
    before = state(model)
    with pytest.raises(FloatingPointError, match="(?s)Loss became.*'loss_abs': .*nan" if period == 1 else "NaN 1 time"):
        run(step, 1)
    torch.testing.assert_close(state(model), before, rtol=0, atol=0)


def test_data_that_fail_stop_it_before_anything_is_computed():
    """In the second micro-batch of the second step."""

    def batches():
        for _ in range(3):
            yield pairs(8)
        raise KeyError("bbox")

    model = Regression(norm=True)
    step = a_step(model, batches(), accumulate_steps=2)
    run(step, 1)
    before = state(model)
    with pytest.raises(DataError, match="bbox") as error:
        run(step, 1)
    assert isinstance(error.value.__cause__, KeyError)
    torch.testing.assert_close(state(model), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "error, line",
    [
        (OSError("no such file"), "no such file"),
        (StopIteration(), "StopIteration"),
        (
            ValueError("Caught ValueError in DataLoader worker process 0.\nTraceback\nValueError: all rejected\n"),
            "ValueError: all rejected",
        ),
    ],
)
def test_the_line_of_an_error(error, line):
    assert last_line(error) == line


def test_a_checkpoint_goes_between_precisions():
    fp16, full = (a_step(Regression(), itertools.repeat(pairs(8)), precision=p) for p in (torch.float16, None))
    run(fp16, 2), run(full, 2)
    fp16.grad_scaler.update(512.0)
    fp16.skipped_steps, fp16.skipped_in_a_row = 3, 1
    saved, saved_full = fp16.state_dict(), full.state_dict()
    full.load_state_dict(saved)
    other = a_step(Regression(), None, precision=torch.float16)
    other.load_state_dict(saved_full)
    other.load_state_dict({k: saved_full[k] for k in ("iteration", "optimizer")})  # of Detectron2's SimpleTrainer
    other.load_state_dict(saved)
    assert other.grad_scaler.get_scale() == 512 and other.iter == 2
    assert (other.skipped_steps, other.skipped_in_a_row) == (3, 1)


def test_precision_by_name():
    assert mixed_precision("bf16", "cpu") is mixed_precision("bf16", "cuda") is torch.bfloat16
    assert mixed_precision("fp16", "cuda:1") is torch.float16
    with pytest.raises(ValueError, match="fp16 needs a GPU, but MODEL.DEVICE is cpu: set it to bf16"):
        mixed_precision("fp16", "cpu")
    with pytest.raises(ValueError, match=r"AMP.PRECISION is 'half', expected one of \['bf16', 'fp16'\]"):
        mixed_precision("half", "cuda")


def test_the_loader_gives_micro_batches(tiny_cfg, datasets):
    cfg = tiny_cfg("DATASETS.TRAIN", (datasets[0],), "SOLVER.IMS_PER_BATCH", 8, "SOLVER.ACCUMULATE_STEPS", 4)
    assert len(next(iter(Trainer.build_train_loader(cfg)))) == 2 and cfg.SOLVER.IMS_PER_BATCH == 8
    for batch_size, accumulate_steps in ((8, 3), (8, 16), (8, 0), (8, -2), (0, 1)):
        with pytest.raises(ValueError, match=f"IMS_PER_BATCH is {batch_size}.*ACCUMULATE_STEPS {accumulate_steps},"):
            micro_batch_size(batch_size, accumulate_steps)


def test_a_loss_is_told_how_many_calls_an_iteration_has():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), LateStart(SoftmaxLoss(3), SoftmaxFocalLoss(3), start_iter=5))
    a_step(model, itertools.repeat(pairs(8)), accumulate_steps=4)
    assert model[1].calls_per_iteration == 4


def test_the_iterations_of_losses_are_scaled_with_the_others(tiny_cfg):
    node = "MODEL.ROI_BOX_HEAD.CLS_LOSS"
    cfg = tiny_cfg(
        *("SOLVER.REFERENCE_WORLD_SIZE", 8, "SOLVER.IMS_PER_BATCH", 16, "SOLVER.MAX_ITER", 100),
        f"{node}.START_ITER",
        50,
        f"{node}.LDAMLoss.REWEIGHT_ITER",
        80,
    )
    cfg.freeze()
    scaled = Trainer.auto_scale_workers(cfg, 2)
    losses = scaled.MODEL.ROI_BOX_HEAD.CLS_LOSS
    assert (scaled.SOLVER.MAX_ITER, losses.START_ITER, losses.LDAMLoss.REWEIGHT_ITER) == (400, 200, 320)
    assert losses.InfluenceBalancedLoss.START_ITER == 0 and scaled.is_frozen()
    assert Trainer.auto_scale_workers(cfg, 8).MODEL.ROI_BOX_HEAD.CLS_LOSS.START_ITER == 50


@pytest.mark.parametrize("trainer_class", [TrainStep, Trainer])
@pytest.mark.parametrize("fail_at, evaluations", [(2, 0), (None, 1)], ids=["last iteration", "no failure"])
def test_a_failed_training_is_not_evaluated(trainer_class, fail_at, evaluations):
    class Failing(trainer_class):
        def __init__(self):
            TrainerBase.__init__(self)
            self.concurrent_executor = ThreadPoolExecutor()

        def run_step(self):
            if self.iter == fail_at:
                raise RuntimeError("planned")

    trainer, evaluated = Failing(), []
    trainer.register_hooks([hooks.EvalHook(0, lambda: evaluated.append(1))])
    with nullcontext() if fail_at is None else pytest.raises(RuntimeError, match="planned"):
        TrainerBase.train(trainer, 0, 3)
    assert len(evaluated) == evaluations


def test_the_lazy_trainer_takes_the_same_step(tmp_path):
    cfg = LazyConfig.load(get_config_file("lazy/mini_lvis_eql.py"))
    cfg.train.update(device="cpu", output_dir=str(tmp_path), init_checkpoint="", accumulate_steps=2)
    cfg.train.amp.update(enabled=True)
    trainer = Trainer(cfg)
    step = trainer._trainer
    assert step.precision is torch.bfloat16 and step.accumulate_steps == 2
    assert len(next(iter(trainer.data_loader))) == 2


@pytest.mark.parametrize("layers", [2, 30])
def test_a_step_launches_few_kernels_more_than_detectron2s(layers):
    """However many parameters and statistics there are."""
    model = Regression()
    model.norm = nn.Sequential(*(nn.BatchNorm1d(2) for _ in range(layers)))
    kernels = {}
    for step_class in (SimpleTrainer, TrainStep):
        step = step_class(model, itertools.repeat(pairs(4)), torch.optim.SGD(model.parameters(), lr=0.1))
        run(step, 1)
        with Kernels() as counted:
            run(step, 1)
        kernels[step_class] = counted.count
    assert 0 < kernels[TrainStep] - kernels[SimpleTrainer] <= 20
