"""Checkpoints and dumped configs of commit 862c63d, the first version, by the names and shapes of what it wrote."""

import inspect

import pytest
import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from eql_d2 import CLS_LOSS_REGISTRY, add_eql_config, build_cls_loss
from eql_d2.engine.checkpoint import LongTailCheckpointer
from eql_d2.losses import CountsSteps

K = 7
SUMS = torch.linspace(1, 2, K, dtype=torch.float64)
STATES = {
    "BalancedGroupSoftmaxLoss": {"group": torch.tensor([1, 2, 2, 2, 3, 3, 3, 0])},
    "EqualizationLossV2": {"gradients.positive": SUMS, "gradients.negative": 2 * SUMS},
    "EqualizedFocalLoss": {"focal_gradients.positive": SUMS, "focal_gradients.negative": 2 * SUMS},
    "InfluenceBalancedLoss": {"steps": torch.tensor(5)},
    "LDAMLoss": {"steps": torch.tensor(5)},
    "SeesawLoss": {"counts": torch.arange(K)},
}
NODE = """
COMPILE: false
COUNTS_FILE: ''
IMAGE_LABELS: false
NAME: ''
START_ITER: 0
AdaptiveClassSuppressionLoss: {BACKGROUND_SHARES: [0.01, 0.1, 1.0], PRIOR_PROB: 0.01, SCORE_THRESHOLD: 0.7}
AsymmetricLoss: {GAMMA_NEG: 4.0, GAMMA_POS: 1.0, MARGIN: 0.05, PRIOR_PROB: 0.001}
BalancedGroupSoftmaxLoss: {BOUNDS: [10, 100, 1000], OTHERS_RATIO: 8.0}
BalancedSoftmaxLoss: {PRIOR_PROB: 0.001}
ClassBalancedLoss: {BASE: sigmoid, BETA: 0.999, GAMMA: 0.5}
ClassDependentTemperatureLoss: {GAMMA: 0.1}
DropLoss: {PRIOR_PROB: 0.001, TAIL: {GROUPS: null, LAMBDA: null, MAX_IMAGE_COUNT: null}}
EffectiveClassMarginLoss: {BACKGROUND_RATIO: 6.3313}
EqualizationLoss:
  EXCLUDE_BACKGROUND: true
  PRIOR_PROB: 0.001
  TAIL: {GROUPS: null, LAMBDA: null, MAX_IMAGE_COUNT: null}
  UNCHECKED: ignore
EqualizationLossV2: {ALPHA: 4.0, GAMMA: 12.0, MU: 0.8, PRIOR_PROB: 0.001}
EqualizedFocalLoss: {ALPHA: 0.25, GAMMA: 2.0, PRIOR_PROB: 0.01, SCALE: 8.0}
FederatedLoss: {POWER: 0.5, PRIOR_PROB: 0.01, SUBSET_SIZE: 50}
InfluenceBalancedLoss: {DETACH: true, START_ITER: 0}
LDAMLoss: {BETA: 0.9999, MAX_MARGIN: 0.5, REWEIGHT_ITER: null, SCALE: 30.0}
LabelSmoothingLoss: {APPLY_ON: all, EPSILON: 0.1}
LogitAdjustedLoss: {TAU: 1.0}
SeesawLoss: {EPSILON: 0.01, P: 0.8, Q: 2.0}
SigmoidCrossEntropy: {PRIOR_PROB: 0.001}
SigmoidFocalLoss: {ALPHA: 0.25, GAMMA: 2.0, PRIOR_PROB: 0.01}
SoftmaxCrossEntropy: {}
SoftmaxEqualizationLoss: {APPLY_ON: fg, GAMMA: 0.9, TAIL: {GROUPS: null, LAMBDA: null, MAX_IMAGE_COUNT: null}}
SoftmaxFocalLoss: {GAMMA: 2.0}
VectorScalingLoss: {GAMMA: 0.3, TAU: 1.0}
WeightedCrossEntropy: {BACKGROUND_WEIGHT: 1.0, NORMALIZE_BY: rois, POWER: 1.0}
"""


def built(name, start_iter, tiny_cfg):
    node = "MODEL.ROI_BOX_HEAD.CLS_LOSS"
    return build_cls_loss(tiny_cfg(f"{node}.NAME", name, f"{node}.START_ITER", start_iter))


def with_start(name):
    """The state of a loss of START_ITER, whose steps were counted."""
    return {**STATES.get(name, {}), "steps": torch.tensor(5)}


CASES = [(name, 0, STATES[name]) for name in sorted(STATES)]
CASES += [
    (name, 9, with_start(name)) for name in ("EqualizationLossV2", "LDAMLoss", "InfluenceBalancedLoss", "DropLoss")
]


@pytest.mark.parametrize("name, start_iter, state", CASES)
def test_its_checkpoints_load(name, start_iter, state, tiny_cfg, tmp_path):
    model = torch.nn.ModuleDict({"cls_loss": built(name, start_iter, tiny_cfg)})
    checkpoint = {f"cls_loss.{key}": value for key, value in state.items()}
    model.load_state_dict(checkpoint)  # which is strict
    expected = [value.clone() for value in model.state_dict().values()]

    model = torch.nn.ModuleDict({"cls_loss": built(name, start_iter, tiny_cfg)})
    torch.save({"model": checkpoint}, tmp_path / "first.pth")
    LongTailCheckpointer(model).load(str(tmp_path / "first.pth"))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), expected, strict=True))
    for key, value in state.items():
        assert any(torch.equal(value, other) for other in expected), key
    for module in model.modules():
        if isinstance(module, CountsSteps):
            assert module.steps_done == module.steps == 5


def test_its_config_files_merge_and_mean_the_same():
    cfg = get_cfg()
    add_eql_config(cfg)
    now = cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS
    first = CfgNode(yaml.safe_load(NODE))
    merged = now.clone()
    merged.merge_from_other_cfg(first)
    assert merged == now  # the same defaults, and no key is unknown
    assert set(STATES) <= set(first) and all(name in dict(CLS_LOSS_REGISTRY) for name in STATES)


def test_all_losses_with_a_state_are_here(frequencies):
    """A loss that joins later is in no first checkpoint; one whose state gets another name must load the old one."""
    first = set(yaml.safe_load(NODE))
    for name, loss_class in CLS_LOSS_REGISTRY:
        arguments = {"frequencies": frequencies} if "frequencies" in inspect.signature(loss_class).parameters else {}
        assert name not in first or bool(loss_class(K, **arguments).state_dict()) == (name in STATES)
