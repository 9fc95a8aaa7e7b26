"""What every registered loss must do. A new loss is tested here without a change; see ``LossOfAUser``."""

import copy
import inspect
import io

import pytest
import torch
from detectron2.config import configurable, get_cfg
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from torch.nn import functional as F

from eql_d2 import CLS_LOSS_REGISTRY, add_eql_config, build_cls_loss, get_config_file
from eql_d2.data.frequencies import FrequenciesNotFound, TailRule
from eql_d2.engine import load_config
from eql_d2.losses import ClassificationLoss, SoftmaxLoss
from eql_d2.losses.hyper_parameters import defaults
from eql_d2.modeling import LongTailFastRCNNOutputLayers

K, D = 7, 16


class LossOfAUser(SoftmaxLoss):
    """A loss as someone outside this package would write it: weights from counts, state, a hyper-parameter."""

    @configurable
    def __init__(self, num_classes: int, *, frequencies, power: float = 0.5):
        super().__init__(num_classes)
        self.power = power
        self.register_derived("weight", frequencies, self.weight_of)
        self.register_buffer("seen", torch.zeros(num_classes + 1, dtype=torch.int64))

    def weight_of(self, frequencies):
        return torch.cat([frequencies.image_count.double() ** -self.power, torch.ones(1)])

    def compute(self, logits, rois):
        self.seen.scatter_add_(0, rois.gt_classes, torch.ones_like(rois.gt_classes))
        logits = logits - (1 + self.seen).to(logits.dtype).log()
        weight = self.weight.to(logits.dtype)
        return F.cross_entropy(logits, rois.gt_classes, weight, reduction="none")


CLASSES = {**dict(CLS_LOSS_REGISTRY), LossOfAUser.__name__: LossOfAUser}
LOSSES = sorted(CLASSES)


def takes_frequencies(loss_class):
    return "frequencies" in inspect.signature(loss_class.__init__).parameters


losses_with_negatives = pytest.mark.parametrize(
    "name", [name for name in LOSSES if CLASSES[name].uses_negatives], indirect=True
)
losses_without_negatives = pytest.mark.parametrize(
    "name", [name for name in LOSSES if not CLASSES[name].uses_negatives], indirect=True
)
losses_with_counts = pytest.mark.parametrize(
    "name", [name for name in LOSSES if takes_frequencies(CLASSES[name])], indirect=True
)


@pytest.fixture(scope="module", autouse=True)
def register_loss_of_a_user():
    CLS_LOSS_REGISTRY.register(LossOfAUser)
    yield
    del CLS_LOSS_REGISTRY._obj_map[LossOfAUser.__name__]


@pytest.fixture(params=LOSSES)
def name(request):
    return request.param


@pytest.fixture
def make(name, frequencies):
    """Makes the loss from plain arguments: num_classes, frequencies if it takes them, and the given ones."""

    def make_loss(**arguments):
        loss_class = CLS_LOSS_REGISTRY.get(name)
        if takes_frequencies(loss_class):
            arguments.setdefault("frequencies", frequencies)
        return loss_class(num_classes=K, **arguments)

    return make_loss


def a_batch(loss, gt_classes=None, scale=3.0, dtype=torch.float32):
    """(logits that require a gradient, gt_classes, features), the same ones for the same random state."""
    gt_classes = torch.arange(4 * (K + 1)) % (K + 1) if gt_classes is None else gt_classes
    R = len(gt_classes)
    logits = (torch.randn(R, loss.num_logits) * scale).to(dtype).requires_grad_()
    return logits, gt_classes, torch.rand(R, D).to(dtype)


def step(loss, logits, gt_classes, features, seed=0):
    """(value, gradient) of one training step."""
    logits = logits.detach().clone().requires_grad_()
    torch.manual_seed(seed)
    value = loss(logits, gt_classes, features)
    value.backward()
    return value.detach(), logits.grad


def test_the_contract_is_complete(make):
    loss = make()
    assert isinstance(loss, ClassificationLoss) and loss.num_classes == K
    assert type(loss).compute is not ClassificationLoss.compute
    arguments = list(inspect.signature(type(loss).__init__).parameters.values())[2:]
    assert all(p.kind is p.KEYWORD_ONLY for p in arguments)
    assert type(loss).__doc__


def test_value_is_a_finite_scalar_with_a_finite_gradient(make):
    loss = make()
    value, gradient = step(loss, *a_batch(loss))
    assert value.shape == () and value.dtype == torch.float32 and value.isfinite()
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


@pytest.mark.parametrize(
    "gt_classes",
    [
        pytest.param([K] * 8, id="all background"),
        pytest.param([0, 1, 2, 3, 4, 0, 1, 2], id="all tail foreground"),
        pytest.param([K - 1] * 8, id="one category"),
        pytest.param([0], id="single foreground RoI"),
        pytest.param([K], id="single background RoI"),
    ],
)
@pytest.mark.parametrize("steps", [1, 3])
def test_uneven_batches(make, gt_classes, steps):
    loss = make()
    for _ in range(steps):
        value, gradient = step(loss, *a_batch(loss, torch.tensor(gt_classes)))
        assert value.isfinite() and gradient.isfinite().all()


def test_without_rois_it_is_zero_with_a_gradient_path(make):
    loss = make()
    layer = torch.nn.Linear(D, loss.num_logits)
    features = torch.rand(0, D)
    value = loss(layer(features), torch.zeros(0, dtype=torch.int64), features)
    value.backward()
    assert value == 0 and value.shape == ()
    assert (layer.weight.grad == 0).all() and (layer.bias.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(make, dtype):
    logits, gt_classes, features = a_batch(make(), dtype=dtype)
    value, gradient = step(make(), logits, gt_classes, features)
    expected, expected_gradient = step(make(), logits.float(), gt_classes, features.float())
    assert value.dtype == torch.float32 and gradient.dtype == dtype
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.float(), expected_gradient, rtol=1e-2, atol=1e-4)


def test_autocast_leaves_it_in_fp32(make):
    logits, gt_classes, features = a_batch(make())
    expected, expected_gradient = step(make(), logits, gt_classes, features)
    with torch.autocast("cpu", torch.bfloat16):
        value, gradient = step(make(), logits, gt_classes, features)
    assert value.dtype == torch.float32
    assert torch.equal(value, expected) and torch.equal(gradient, expected_gradient)


def test_float64_stays_and_fp32_is_near_it(make):
    logits, gt_classes, features = a_batch(make(), dtype=torch.float64)
    expected, expected_gradient = step(make(), logits, gt_classes, features)
    assert expected.dtype == expected_gradient.dtype == torch.float64
    value, gradient = step(make(), logits.float(), gt_classes, features.float())
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    error = (gradient - expected_gradient).abs().max() / expected_gradient.abs().max()
    assert error < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_inputs_are_left_as_they_are(make, dtype):
    loss = make()
    inputs = a_batch(loss, dtype=dtype)
    before = copy.deepcopy([x.detach() for x in inputs])
    loss(*inputs).backward()
    loss.probs(inputs[0])
    assert all(torch.equal(x, y) for x, y in zip(inputs, before))
    assert not inputs[2].requires_grad


@pytest.mark.parametrize("sign", [-1, 1, 0], ids=["all -1e4", "all +1e4", "mixed"])
@pytest.mark.parametrize("steps", [1, 3])
def test_extreme_logits(make, sign, steps):
    """Value, gradient and scores stay finite, at the first step and with what the loss accumulated."""
    loss = make()
    logits, gt_classes, features = a_batch(loss)
    logits = 1e4 * (sign or logits.detach().sign()) * torch.ones_like(logits)
    for _ in range(steps):
        value, gradient = step(loss, logits, gt_classes, features)
        assert value.isfinite() and gradient.isfinite().all()
    probs = loss.probs(logits)
    assert probs.isfinite().all() and (probs >= 0).all() and (probs <= 1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_probs(make, dtype):
    loss = make()
    logits = a_batch(loss, dtype=dtype)[0].detach()
    probs = loss.probs(logits)
    assert probs.shape == (len(logits), K + 1)
    assert probs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (probs >= 0).all() and (probs <= 1).all()
    classes = loss.predicted_classes(probs)
    assert classes.shape == (len(logits),) and (classes >= 0).all() and (classes <= K).all()
    assert loss.probs(logits[:0]).shape == (0, K + 1)


def test_state_dict_round_trip(make):
    """A loss that goes on from a checkpoint takes the same next step, and ends in the same state."""
    loss, resumed = make(), make()
    inputs = a_batch(loss)
    for seed in range(2):
        step(loss, *inputs, seed)
    checkpoint = io.BytesIO()
    torch.save(loss.state_dict(), checkpoint)
    checkpoint.seek(0)
    resumed.load_state_dict(torch.load(checkpoint, weights_only=True), strict=True)
    for one, other in zip(step(loss, *inputs, seed=2), step(resumed, *inputs, seed=2)):
        assert torch.equal(one, other)
    for key, value in loss.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_a_seed_fixes_it(make):
    inputs = a_batch(make())
    for one, other in zip(step(make(), *inputs, seed=5), step(make(), *inputs, seed=5)):
        assert torch.equal(one, other)


def test_scoring_changes_no_state(make):
    loss = make().eval()
    before = copy.deepcopy(loss.state_dict())
    loss.probs(torch.randn(5, loss.num_logits))
    assert all(torch.equal(before[key], value) for key, value in loss.state_dict().items())


def test_the_predictor_is_as_wide_as_the_loss_says(make):
    loss = make()
    predictor = LongTailFastRCNNOutputLayers(
        D, box2box_transform=Box2BoxTransform((10, 10, 5, 5)), num_classes=K, cls_loss=loss
    )
    logits, _, features = predictor(torch.rand(3, D))
    assert predictor.cls_score.out_features == logits.shape[1] == loss.num_logits
    assert loss.probs(logits).shape == (3, K + 1)
    assert loss(logits, torch.tensor([0, K - 1, K]), features).isfinite()
    if loss.prior_prob is not None:
        bias = predictor.cls_score.bias[:K].sigmoid()
        torch.testing.assert_close(bias, torch.full_like(bias, loss.prior_prob))
    with pytest.raises(
        ValueError, match=f"^{type(loss).__name__} of {K} classes takes {loss.num_logits} logits per RoI, got"
    ):
        loss(torch.zeros(1, loss.num_logits + 1), torch.tensor([0]), torch.zeros(1, D))


def test_no_step_looks_at_a_value(make):
    """On the meta device there are no values: `.item()` and data-dependent shapes raise, as a GPU would wait for them.

    So does a buffer that was left on the CPU.
    """
    loss = make()
    logits, gt_classes, features = (x.detach().to("meta") for x in a_batch(loss))
    logits.requires_grad_()
    loss.to("meta")(logits, gt_classes, features).backward()
    assert logits.grad.shape == logits.shape
    assert loss.probs(logits).device.type == "meta"


@losses_with_negatives
def test_unknown_categories_take_no_part(make):
    loss = make()
    logits, gt_classes, features = a_batch(loss)
    known = torch.arange(K).expand(len(logits), K) != 5
    loss(logits, gt_classes, features, negatives=known).backward()
    assert (logits.grad[:, 5] == 0).all() and (logits.grad[:, 6] != 0).any()


@losses_without_negatives
def test_a_loss_that_says_it_uses_no_negatives_does_not(make):
    inputs = a_batch(make())
    value, _ = step(make(), *inputs)
    torch.manual_seed(0)
    nothing_known = torch.zeros(len(inputs[0]), K, dtype=torch.bool)
    assert torch.equal(make()(*inputs, negatives=nothing_known), value)


# ---- configs ----


def assert_same_loss(one, other):
    """Same arguments kept, same buffers, same step."""
    inputs = a_batch(one)
    for a, b in zip(step(one, *inputs), step(other, *inputs)):
        assert torch.equal(a, b)
    assert one.prior_prob == other.prior_prob and one.num_logits == other.num_logits
    buffers = dict(other.named_buffers())
    assert {key for key, _ in one.named_buffers()} == buffers.keys()
    assert all(torch.equal(value, buffers[key]) for key, value in one.named_buffers())


def test_config_and_arguments_make_the_same_loss(make, name, tiny_cfg):
    node = f"MODEL.ROI_BOX_HEAD.CLS_LOSS.{name}"
    choose = ["MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", name]
    assert_same_loss(build_cls_loss(tiny_cfg(*choose)), make())

    others = {}  # every number and the tail of the loss, with other values than the defaults
    for argument, default in defaults(CLS_LOSS_REGISTRY.get(name)).items():
        if isinstance(default, TailRule):
            others[argument] = TailRule(groups="r")
            choose += [f"{node}.TAIL.GROUPS", "r"]
        elif isinstance(default, float):
            others[argument] = default / 2
            choose += [f"{node}.{argument.upper()}", default / 2]
    assert_same_loss(build_cls_loss(tiny_cfg(*choose)), make(**others))


def test_each_default_is_the_signatures(name):
    cfg = get_cfg()
    add_eql_config(cfg)
    node = cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS[name]
    expected = defaults(CLS_LOSS_REGISTRY.get(name))
    assert node.keys() == {argument.upper() for argument in expected}
    for argument, default in expected.items():
        if isinstance(default, TailRule):
            assert default == TailRule() and set(node.TAIL.values()) == {None}
        else:
            value = node[argument.upper()]
            assert value == default and type(value) is type(default)


@losses_with_counts
def test_without_counts_it_scores_but_does_not_train(make, name):
    loss = make(frequencies=FrequenciesNotFound("the annotation file of 'x' is not there"))
    loss.load_state_dict(make().state_dict())  # a model that scores is loaded from a checkpoint
    logits, gt_classes, features = a_batch(loss)
    assert torch.equal(loss.probs(logits), make().probs(logits))
    with pytest.raises(ValueError, match=f"{name} needs class frequencies to train: .*'x' is not there"):
        loss(logits, gt_classes, features)


@losses_with_counts
def test_counts_of_another_dataset_are_refused(name, frequencies):
    loss_class = CLS_LOSS_REGISTRY.get(name)
    with pytest.raises(ValueError, match=f"{name} has 8 classes, but .* counts 7"):
        loss_class(num_classes=8, frequencies=frequencies)


def test_a_loss_of_a_user_is_chosen_in_yaml(tmp_path, counts_file):
    yaml = tmp_path / "loss_of_a_user.yaml"
    yaml.write_text(
        f"""
_BASE_: {get_config_file("MiniLVIS/Base-MiniLVIS.yaml")}
MODEL:
  DEVICE: cpu
  WEIGHTS: ""
  ROI_HEADS:
    NUM_CLASSES: 7
  ROI_BOX_HEAD:
    CLS_LOSS:
      NAME: LossOfAUser
      COUNTS_FILE: {counts_file}
      LossOfAUser:
        POWER: 1.0
"""
    )
    loss = build_model(load_config(str(yaml))).roi_heads.box_predictor.cls_loss
    assert type(loss) is LossOfAUser and loss.power == 1.0
    assert loss.weight[2] == 0.1


def test_a_loss_imported_too_late_says_so(tiny_cfg):
    cfg = tiny_cfg("MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", "LossOfAUser")
    del cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS["LossOfAUser"]
    with pytest.raises(ValueError, match="import the module that registers LossOfAUser before"):
        build_cls_loss(cfg)
