"""The gradient balance: right sums for any loss, precision and number of processes, and no trace in the training."""

import json
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine import launch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from torch import nn

from eql_d2 import CLS_LOSS_REGISTRY, ClassFrequencies, build_cls_loss
from eql_d2.engine import Trainer
from eql_d2.engine.gradient_balance import (
    GRADIENT_BALANCE_FILE,
    GradientBalance,
    build_gradient_balance,
    positive_and_negative,
    value_of,
)
from eql_d2.losses import SigmoidCrossEntropy, SoftmaxCrossEntropy
from eql_d2.losses.base import ClassificationLoss
from eql_d2.modeling import LongTailFastRCNNOutputLayers

K, D, R = 7, 16, 40
GROUPS = "rrrccff"
LOSSES = sorted(name for name, cls in CLS_LOSS_REGISTRY if cls.__module__.startswith("eql_d2."))


def make_frequencies():
    counts = [1, 9, 10, 11, 100, 101, 400]
    return ClassFrequencies(image_count=counts, instance_count=counts, num_images=1000)


def predictor_with(loss):
    transform = Box2BoxTransform(weights=(10, 10, 5, 5))
    predictor = LongTailFastRCNNOutputLayers(D, cls_loss=loss, box2box_transform=transform, num_classes=K)
    nn.init.normal_(predictor.cls_score.weight)
    return predictor.train()


def batch(seed=0):
    """Features, and labels among which each category and background occur."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, K + 1, (R,), generator=generator)
    labels[: K + 1] = torch.arange(K + 1)
    return torch.randn(R, D, generator=generator), labels


class Run:
    """The hook between the steps of a training: `step(backward)` is one of `max_iter` iterations."""

    def __init__(self, predictors, folder, period=1, max_iter=3, start_iter=0, checkpoint_period=1000):
        self.hook = GradientBalance(predictors, make_frequencies(), period, checkpoint_period, str(folder))
        self.storage = EventStorage(start_iter)
        self.hook.trainer = SimpleNamespace(iter=start_iter, max_iter=max_iter, storage=self.storage)
        self.hook.before_train()
        self.path = folder / GRADIENT_BALANCE_FILE

    def step(self, forward_and_backward):
        self.hook.before_step()
        with self.storage:
            forward_and_backward()
            self.hook.after_step()
        self.hook.trainer.iter += 1
        self.storage.step()

    def sums(self, stage=0):
        """(2, K) sums in the file."""
        stages = json.loads(self.path.read_text())["stages"]
        return torch.tensor([stages[stage]["positive"], stages[stage]["negative"]], dtype=torch.float64)

    def logged(self, name):
        return self.storage.latest()[f"balance/{name}"][0]


def sums_in_loops(gradient, labels):
    sums = torch.zeros(2, K, dtype=torch.float64)
    for i in range(len(labels)):
        for j in range(K):
            sums[0 if labels[i] == j else 1, j] += abs(gradient[i, j].double())
    return sums


def expected_sums(predictor, features, labels):
    """By autograd and loops; `forward` itself, past the hooks."""
    logits = predictor(features)[0]
    value = predictor.cls_loss.forward(logits, labels, features)
    return sums_in_loops(torch.autograd.grad(value, logits)[0], labels)


def classify(predictor, features, labels, scale=1.0):
    logits = predictor(features)[0]
    (predictor.cls_loss(logits, labels, features) * scale).backward()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [K, K + 2])
def test_sums_are_those_of_loops(dtype, width):
    _, labels = batch()
    gradient = torch.randn(R, width).to(dtype)[:, :K]
    sums = positive_and_negative(gradient, labels)
    torch.testing.assert_close(sums.double(), sums_in_loops(gradient, labels), rtol=1e-5, atol=1e-5)
    assert positive_and_negative(gradient[:0], labels[:0]).tolist() == [[0.0] * K] * 2


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_every_registered_loss(name, tiny_cfg, tmp_path):
    """Against autograd at the logits, under another loss scale, and with the random draws of the step itself."""
    predictor = predictor_with(build_cls_loss(tiny_cfg("MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", name)))
    run = Run([predictor], tmp_path, max_iter=2)
    expected = torch.zeros(2, K, dtype=torch.float64)

    def step():
        nonlocal expected
        logits = predictor(features)[0]
        value = predictor.cls_loss(logits, labels, features)
        (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
        run.hook._stages[0].reset()  # what this first backward has added
        expected += sums_in_loops(gradient, labels)
        (1024 * value).backward()

    for seed in range(2):
        features, labels = batch(seed)
        run.step(step)
    torch.testing.assert_close(run.sums(), expected, rtol=1e-5, atol=1e-7)


def test_what_is_logged_is_right_for_sigmoid_cross_entropy(tmp_path):
    """dL/dz = (p - y) / R in closed form; loss and score of a group's RoIs alone."""
    predictor = predictor_with(SigmoidCrossEntropy(K))
    features, labels = batch()
    run = Run([predictor], tmp_path)
    run.step(lambda: classify(predictor, features, labels))
    z = predictor(features)[0].detach().double()
    p, y = z.sigmoid(), nn.functional.one_hot(labels, K + 1)[:, :K]
    positive, negative = ((1 - p) * y / R).sum(0), (p * (1 - y) / R).sum(0)
    rare = [j for j, g in enumerate(GROUPS) if g == "r"]
    assert run.logged("positive_gradient_rare") == pytest.approx(positive[rare].mean().item(), rel=1e-5)
    assert run.logged("negative_gradient_rare") == pytest.approx(negative[rare].mean().item(), rel=1e-5)
    ratio = positive[5:].sum() / negative[5:].sum()
    assert run.logged("gradient_ratio_frequent") == pytest.approx(ratio.item(), rel=1e-5)
    assert run.logged("weight_norm_common") == pytest.approx(
        sum(predictor.cls_score.weight[j].norm().item() for j in (3, 4)) / 2, rel=1e-5
    )
    of_rare = [i for i in range(R) if labels[i] in rare]
    own = torch.stack([p[i, labels[i]] for i in of_rare])
    assert run.logged("score_rare") == pytest.approx(own.mean().item(), rel=1e-5)
    bce = -(y * p.log() + (1 - y) * (1 - p).log()).sum(1)
    assert run.logged("cost_rare") == pytest.approx(bce[of_rare].mean().item(), rel=1e-5)
    assert run.logged("cost_background") == pytest.approx(bce[labels == K].mean().item(), rel=1e-5)


def test_logs_are_means_since_the_last_and_come_each_period(tmp_path):
    predictor = predictor_with(SigmoidCrossEntropy(K))
    run = Run([predictor], tmp_path, period=2, max_iter=4)
    per_step = []
    for seed in range(4):
        features, labels = batch(seed)
        run.step(lambda: classify(predictor, features, labels))
        history = run.storage.histories().get("balance/positive_gradient_rare")
        assert (0 if history is None else len(history.values())) == (seed + 1) // 2
        per_step.append(expected_sums(predictor, features, labels)[0, :3].mean().item())
    assert run.logged("positive_gradient_rare") == pytest.approx(sum(per_step[2:]) / 2, rel=1e-5)


def test_what_has_no_rois_or_categories_is_left_out(tmp_path):
    predictor = predictor_with(SoftmaxCrossEntropy(K))
    run = Run([predictor], tmp_path)
    labels = torch.full((R,), 5)
    run.step(lambda: classify(predictor, batch()[0], labels))
    names = {name.removeprefix("balance/") for name in run.storage.latest()}
    assert {"cost_frequent", "score_frequent", "gradient_ratio_rare"} <= names
    assert not names & {"cost_rare", "score_common", "cost_background"}


def test_stages_of_a_cascade_are_apart(tmp_path):
    predictors = [predictor_with(SoftmaxCrossEntropy(K)) for _ in range(3)]
    run = Run(predictors, tmp_path, max_iter=1)
    run.step(lambda: [classify(p, *batch(i)) for i, p in enumerate(predictors)])
    assert len({run.storage.latest()[f"stage{i}/balance/cost_rare"] for i in range(3)}) == 3
    for i, predictor in enumerate(predictors):
        torch.testing.assert_close(run.sums(i), expected_sums(predictor, *batch(i)), rtol=1e-5, atol=1e-7)


def test_a_period_below_one_names_the_key(tiny_cfg):
    cfg = tiny_cfg("MODEL.ROI_HEADS.NAME", "EQLROIHeads", "GRADIENT_BALANCE_PERIOD", -1)
    with pytest.raises(ValueError, match="GRADIENT_BALANCE_PERIOD must be .* got -1"):
        build_gradient_balance(cfg, predictor_with(SoftmaxCrossEntropy(K)))
    cfg.GRADIENT_BALANCE_PERIOD = 0
    assert build_gradient_balance(cfg, predictor_with(SoftmaxCrossEntropy(K))) is None


def test_a_loss_that_is_not_trained_is_left_alone(tmp_path):
    """Without a gradient at the logits (a frozen model), or with one that is not the loss's."""
    predictor = predictor_with(SoftmaxCrossEntropy(K))
    run = Run([predictor], tmp_path, max_iter=2)
    features, labels = batch()

    def step():
        with torch.no_grad():
            logits = predictor(features)[0]
        predictor.cls_loss(logits, labels, features)
        logits = predictor(features)[0]
        predictor.cls_loss(logits, labels, features)
        logits.sum().backward()

    run.step(step)
    run.step(lambda: None)
    assert run.sums().tolist() == [[0.0] * K] * 2


def test_an_overflow_adds_nothing(tmp_path):
    """A GradScaler skips the step; one infinite gradient would spoil the sums of the whole training."""
    predictor = predictor_with(SoftmaxCrossEntropy(K))
    run = Run([predictor], tmp_path, max_iter=2)
    run.step(lambda: classify(predictor, *batch(), scale=float("inf")))
    run.step(lambda: classify(predictor, *batch()))
    sums = run.sums()
    run.hook.after_train()
    once = Run([predictor], tmp_path, max_iter=1)
    once.step(lambda: classify(predictor, *batch()))
    expected = once.sums()
    assert expected.isfinite().all() and expected.min() > 0
    torch.testing.assert_close(sums, expected)


def test_half_precision_and_accumulation(tmp_path):
    """Under bf16 autocast, and with a step of two batches whose losses are halved: to bf16's precision the same."""
    predictor = predictor_with(SigmoidCrossEntropy(K))

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            for seed in range(2):
                classify(predictor, *batch(seed), scale=0.5)

    run = Run([predictor], tmp_path, max_iter=1)
    run.step(step)
    expected = 0
    for seed in range(2):
        expected += expected_sums(predictor, *batch(seed))
    torch.testing.assert_close(run.sums(), expected, rtol=0.05, atol=1e-4)
    assert json.loads(run.path.read_text())["iterations"] == 1


class WiderLoss(ClassificationLoss):
    """K + 2 logits, of which the last two are not categories."""

    num_logits = K + 2

    def compute(self, logits, rois):
        return nn.functional.cross_entropy(logits, rois.gt_classes, reduction="none")

    def probs(self, logits):
        return logits[:, : K + 1].softmax(1)


def test_wider_logits(tmp_path):
    predictor = predictor_with(WiderLoss(K))
    features, labels = batch()
    run = Run([predictor], tmp_path, max_iter=1)
    run.step(lambda: classify(predictor, features, labels))
    logits = predictor(features)[0]
    p = logits.detach().double().softmax(1)
    gradient = (p - nn.functional.one_hot(labels, K + 2)) / R
    torch.testing.assert_close(run.sums(), sums_in_loops(gradient[:, :K], labels), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("checkpoint_period", [3, 1000])  # and a checkpoint that was not foreseen
def test_resumed_sums_and_logs_go_on(tmp_path, checkpoint_period):
    predictor = predictor_with(SigmoidCrossEntropy(K))
    steps = [lambda s=s: classify(predictor, *batch(s)) for s in range(6)]
    through = Run([predictor], tmp_path, period=4, max_iter=6)
    for step in steps:
        through.step(step)
    expected, logged = through.sums(), through.logged("gradient_ratio_rare")
    through.hook.after_train()  # or it goes on to watch

    first = Run([predictor], tmp_path, period=4, max_iter=6, checkpoint_period=checkpoint_period)
    for step in steps[:3]:
        first.step(step)
    state = torch.load(save(first.hook.state_dict(), tmp_path / "state.pth"), weights_only=True)
    first.hook.after_train()
    second = Run([predictor], tmp_path, period=4, max_iter=6, start_iter=3)
    second.hook.load_state_dict(state)
    for step in steps[3:]:
        second.step(step)
    torch.testing.assert_close(second.sums(), expected)
    assert second.logged("gradient_ratio_rare") == pytest.approx(logged)
    assert json.loads(second.path.read_text())["iterations"] == 6


@pytest.mark.parametrize("seed", range(8))
def test_sums_do_not_depend_on_the_period_of_checkpoints(tmp_path, seed):
    """To the last bit, in what is logged and in the file."""

    def run_with(checkpoint_period):
        torch.manual_seed(seed)
        predictor = predictor_with(SigmoidCrossEntropy(K))
        run = Run([predictor], tmp_path, period=6, max_iter=13, checkpoint_period=checkpoint_period)
        for i in range(13):
            run.step(lambda i=i: classify(predictor, *batch(100 * seed + i)))
        return run.storage.latest(), run.sums()

    (logged, sums), (logged_too, sums_too) = run_with(1), run_with(1000)
    assert logged == logged_too and torch.equal(sums, sums_too)


def save(state, path):
    torch.save(state, path)
    return path


@pytest.mark.parametrize("name", LOSSES)
def test_looking_at_a_loss_leaves_no_trace(name, tiny_cfg):
    loss = build_cls_loss(tiny_cfg("MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", name)).train()
    features, labels = batch()
    logits = torch.randn(R, loss.num_logits)
    before = {k: v.clone() for k, v in loss.named_buffers()}
    random_state = torch.random.get_rng_state()
    with torch.no_grad():
        assert value_of(loss, logits, labels, features, None).isfinite()
    assert torch.equal(torch.random.get_rng_state(), random_state) and loss.training
    for key, value in loss.named_buffers():
        assert torch.equal(value, before[key]), key


def two_processes(folder):
    predictor = predictor_with(SigmoidCrossEntropy(K))
    with torch.no_grad():
        predictor.cls_score.weight.fill_(0.1)
    run = Run([predictor], folder, period=2, max_iter=2)
    # One process has no RoI of some groups, and none at all in the first step.
    labels = torch.zeros(R, dtype=torch.int64) if comm.get_rank() else batch()[1]
    for rows in (0 if comm.get_rank() else R, R):
        run.step(lambda: classify(predictor, batch()[0][:rows], labels[:rows]))
    if comm.is_main_process():
        (folder / "scalars.json").write_text(json.dumps({k: v for k, (v, _) in run.storage.latest().items()}))
    comm.synchronize()  # a process that ends takes the connections of the other with it
    torch.distributed.destroy_process_group()


def test_processes_are_added_up(tmp_path):
    launch(two_processes, 2, dist_url="auto", args=(tmp_path,))
    predictor = predictor_with(SigmoidCrossEntropy(K))
    with torch.no_grad():
        predictor.cls_score.weight.fill_(0.1)
    features, labels = batch()
    p = predictor(features)[0].detach().sigmoid()
    zeros = torch.zeros_like(labels)
    expected = 0
    for of_process, steps in ((labels, 2), (zeros, 1)):
        gradient = (p - nn.functional.one_hot(of_process, K + 1)[:, :K]) / R
        expected += steps * sums_in_loops(gradient, of_process)
    stages = json.loads((tmp_path / GRADIENT_BALANCE_FILE).read_text())["stages"]
    sums = torch.tensor([stages[0]["positive"], stages[0]["negative"]], dtype=torch.float64)
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-7)
    scalars = json.loads((tmp_path / "scalars.json").read_text())
    of_first = p[labels < 3].gather(1, labels[labels < 3, None])
    of_rare = torch.cat([of_first, of_first, p[:, :1]])
    assert scalars["balance/score_rare"] == pytest.approx(of_rare.mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    "head, loss",
    [
        ("LongTailROIHeads", "SoftmaxEqualizationLoss"),  # draws random numbers
        ("LongTailROIHeads", "InfluenceBalancedLoss"),  # counts its steps
        ("LongTailCascadeROIHeads", "EqualizationLoss"),
    ],
)
def test_training_is_the_same_to_the_last_bit(tiny_cfg, datasets, tmp_path, head, loss):
    def weights(period):
        cfg = tiny_cfg(
            *("MODEL.ROI_HEADS.NAME", head, "MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", loss),
            *("MODEL.ROI_BOX_HEAD.CLS_LOSS.COUNTS_FILE", ""),
            *("DATASETS.TRAIN", (datasets[0],), "DATASETS.TEST", ()),
            *("SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 3, "SOLVER.IMS_PER_BATCH", 2),
            *("GRADIENT_BALANCE_PERIOD", period),
            *("OUTPUT_DIR", str(tmp_path / f"period_{period}")),
        )
        seed_all_rng(1)  # NumPy's too, which the sampler takes its seed from
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
        return trainer.model.state_dict()

    without, with_hook = weights(0), weights(2)
    assert without.keys() == with_hook.keys()
    for key, value in without.items():
        assert torch.equal(value, with_hook[key]), key
    assert not (tmp_path / "period_0" / GRADIENT_BALANCE_FILE).exists()
    written = json.loads((tmp_path / "period_2" / GRADIENT_BALANCE_FILE).read_text())
    assert written["iterations"] == 4
    checkpoint = torch.load(tmp_path / "period_2" / "model_0000002.pth", weights_only=False)
    assert checkpoint["trainer"]["hooks"]["GradientBalance"]["iterations"] == 3
    lines = [json.loads(line) for line in (tmp_path / "period_2" / "metrics.json").read_text().splitlines()]
    assert any(key.endswith("balance/gradient_ratio_rare") for line in lines for key in line)
