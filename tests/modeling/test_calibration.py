import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage

from eql_d2 import CLS_LOSS_REGISTRY, ClassFrequencies
from eql_d2.losses import (
    BalancedGroupSoftmaxLoss,
    ClassBalancedLoss,
    ClassificationLoss,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    build_cls_loss,
)
from eql_d2.modeling import LongTailFastRCNNOutputLayers
from eql_d2.modeling.calibration import (
    LogitAdjustment,
    NorCal,
    build_calibration,
    scores_are_distribution,
)

K = 7
NAME, STRENGTH = "MODEL.ROI_BOX_HEAD.CALIBRATION.NAME", "MODEL.ROI_BOX_HEAD.CALIBRATION.STRENGTH"
IMAGES, OBJECTS = [1, 9, 10, 11, 100, 101, 400], [1, 20, 10, 30, 150, 202, 900]  # of the fixture
UNIT_OFFSETS = {
    LogitAdjustment: [math.log(n / max(OBJECTS)) for n in OBJECTS],
    NorCal: [math.log(n) for n in IMAGES],
}


@pytest.fixture(params=[LogitAdjustment, NorCal])
def calibration_class(request):
    return request.param


def reference_softmax(z, offset):
    lowered = [math.exp(x - o) for x, o in zip(z, offset + [0.0])]  # background last
    return [x / sum(lowered) for x in lowered]


def reference_sigmoid(z, offset):
    return [1 / (1 + math.exp(o - x)) for x, o in zip(z, offset)] + [0.0]


def test_scores_that_sum_to_1_by_chance_are_no_distribution():
    """Two groups of one category each: equal logits give scores of 1/4, 1/4 and 1/2."""
    grouped = BalancedGroupSoftmaxLoss(2, frequencies=ClassFrequencies([1, 20], [1, 20]))
    assert grouped.probs(torch.zeros(1, 8)).sum() == 1
    assert not scores_are_distribution(grouped) and scores_are_distribution(SoftmaxCrossEntropy(2))


def test_the_scores_are_looked_at_where_the_loss_is(frequencies):
    """In a sweep the model is on the GPU already."""
    loss, seen = BalancedGroupSoftmaxLoss(K, frequencies=frequencies).to("meta"), []
    loss.probs = lambda logits: seen.append(logits.device.type) or torch.zeros(2, K + 1)
    scores_are_distribution(loss)
    assert seen == ["meta"]


@pytest.mark.parametrize("strength", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("sigmoid", [False, True])
def test_equals_the_formula(frequencies, calibration_class, strength, sigmoid):
    loss = SigmoidCrossEntropy(K) if sigmoid else SoftmaxCrossEntropy(K)
    calibration = calibration_class(loss, frequencies, strength)
    logits = torch.randn(30, loss.num_logits, dtype=torch.float64) * 5
    offset = [strength * o for o in UNIT_OFFSETS[calibration_class]]
    formula = reference_sigmoid if sigmoid else reference_softmax
    expected = torch.tensor([formula(z, offset) for z in logits.tolist()], dtype=torch.float64)
    scores = calibration(loss, logits)
    torch.testing.assert_close(scores, expected, rtol=1e-10, atol=0)
    in_fp32 = calibration(loss, logits.float())
    assert in_fp32.dtype == torch.float32
    torch.testing.assert_close(in_fp32.double(), expected, rtol=1e-5, atol=1e-7)
    assert calibration(loss, logits.bfloat16()).dtype == torch.float32
    assert calibration(loss, logits[:0]).shape == (0, K + 1)


@pytest.mark.parametrize("name", sorted(name for name, _ in CLS_LOSS_REGISTRY))
def test_strength_zero_is_the_identity_for_every_loss(tiny_cfg, calibration_class, name):
    choose = ["MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", name, NAME, calibration_class.__name__]
    loss = build_cls_loss(tiny_cfg(*choose))
    logits = torch.randn(20, loss.num_logits) * 4
    off = build_calibration(tiny_cfg(*choose, STRENGTH, 0.0), loss)
    assert torch.equal(off(loss, logits), loss.probs(logits))
    slight = build_calibration(tiny_cfg(*choose, STRENGTH, 1e-9), loss)
    torch.testing.assert_close(slight(loss, logits), loss.probs(logits), rtol=1e-4, atol=1e-6)
    on = build_calibration(tiny_cfg(*choose), loss)(loss, logits)
    assert on.shape == (20, K + 1) and (on >= 0).all() and (on <= 1).all()
    assert not torch.equal(on, loss.probs(logits))


@pytest.mark.parametrize("base", ["sigmoid", "softmax", "focal"])
def test_it_goes_by_the_scores_not_by_the_name_of_the_loss(frequencies, calibration_class, base):
    loss = ClassBalancedLoss(K, frequencies=frequencies, base=base)
    plain = SoftmaxCrossEntropy(K) if base == "softmax" else SigmoidCrossEntropy(K)
    logits = torch.randn(20, loss.num_logits)
    one = calibration_class(loss, frequencies)(loss, logits)
    assert torch.equal(one, calibration_class(plain, frequencies)(plain, logits))


class WithObjectness(ClassificationLoss):
    """Scores sigmoid(z_j) (1 - sigmoid(z_K)), as EQLv2's: neither a softmax nor a sigmoid of z_j."""

    num_logits = K + 1

    def probs(self, logits):
        p = logits.sigmoid()
        return torch.cat([p[:, :K] * (1 - p[:, K:]), p[:, K:]], dim=1)


def test_other_scores_are_lowered_on_their_log_odds(frequencies):
    loss = WithObjectness(K)
    logits = torch.randn(20, K + 1, dtype=torch.float64)
    p = loss.probs(logits)
    scores = NorCal(loss, frequencies, 0.5)(loss, logits)
    odds = p[:, :K] / (1 - p[:, :K]) / torch.tensor(IMAGES, dtype=p.dtype) ** 0.5
    torch.testing.assert_close(scores[:, :K], odds / (1 + odds), rtol=1e-10, atol=0)
    assert torch.equal(scores[:, K], p[:, K])


def test_background_is_untouched(frequencies, calibration_class):
    """Its logit is: the odds of the category with offset 0 against background stay, the others move by theirs."""
    loss = SoftmaxCrossEntropy(K)
    logits = torch.randn(20, K + 1, dtype=torch.float64)
    before = loss.probs(logits)
    after = calibration_class(loss, frequencies, 1.0)(loss, logits)
    offset = torch.tensor(UNIT_OFFSETS[calibration_class], dtype=torch.float64)
    odds = (after[:, :K] / after[:, K:]) / (before[:, :K] / before[:, K:])
    torch.testing.assert_close(odds, (-offset).exp().expand(20, K), rtol=1e-10, atol=0)
    assert offset[6 if calibration_class is LogitAdjustment else 0] == 0


def test_uniform_counts_keep_the_ranking_within_an_image(calibration_class):
    """Of a sigmoid all of it; of a softmax that of the categories of each RoI."""
    uniform = ClassFrequencies([5] * K, [9] * K, num_images=50)
    logits = torch.randn(20, K)
    sigmoid = SigmoidCrossEntropy(K)
    after = calibration_class(sigmoid, uniform)(sigmoid, logits)[:, :K]
    assert torch.equal(after.flatten().argsort(), logits.flatten().argsort())
    softmax, logits = SoftmaxCrossEntropy(K), torch.randn(20, K + 1)
    after = calibration_class(softmax, uniform)(softmax, logits)[:, :K]
    assert torch.equal(after.argsort(), logits[:, :K].argsort())
    if calibration_class is LogitAdjustment:  # an offset of 0
        torch.testing.assert_close(after, softmax.probs(logits)[:, :K])


@pytest.mark.parametrize("loss_class", [SoftmaxCrossEntropy, SigmoidCrossEntropy])
def test_extreme_logits_are_finite(frequencies, calibration_class, loss_class):
    loss = loss_class(K)
    for strength in (1.0, 1e3):
        calibration = calibration_class(loss, frequencies, strength)
        for scale in (0.0, 1e4, -1e4):
            for logits in (torch.randn(9, loss.num_logits).sign(), torch.ones(9, loss.num_logits)):
                scores = calibration(loss, logits * scale)
                assert scores.isfinite().all() and (scores >= 0).all() and (scores <= 1).all()


def test_a_category_without_a_sample_counts_as_one(calibration_class):
    loss = SoftmaxCrossEntropy(3)
    offsets = [calibration_class(loss, ClassFrequencies([n, 5, 9], [n, 5, 20])).offset for n in (0, 1)]
    assert torch.equal(*offsets)


def test_it_works_without_a_config(frequencies):
    loss = SoftmaxCrossEntropy(K)
    predictor = LongTailFastRCNNOutputLayers(
        16,
        box2box_transform=Box2BoxTransform((10, 10, 5, 5)),
        num_classes=K,
        cls_loss=loss,
        calibration=NorCal(loss, frequencies),
    )
    logits = torch.randn(5, K + 1)
    proposals = [Instances((9, 9), a=torch.zeros(2)), Instances((9, 9), a=torch.zeros(3))]
    scores = predictor.predict_probs((logits, None, None), proposals)
    assert [len(s) for s in scores] == [2, 3]
    assert torch.equal(torch.cat(scores), predictor.calibration(loss, logits))


@pytest.mark.parametrize("loss", ["SoftmaxCrossEntropy", "EqualizationLoss"])
def test_it_changes_the_scores_of_a_model_and_nothing_else(tiny_cfg, topology, batched_inputs, calibration_class, loss):
    head, overrides = topology
    choose = ["MODEL.ROI_HEADS.NAME", head, "MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", loss, *overrides]
    results, states = {}, {}
    for strength in (None, 0.0, 1.0):
        calibrate = [] if strength is None else [NAME, calibration_class.__name__, STRENGTH, strength]
        torch.manual_seed(0)
        model = build_model(tiny_cfg(*choose, *calibrate))
        states[strength] = {key: value.clone() for key, value in model.state_dict().items()}
        with EventStorage():
            losses = {key: value.item() for key, value in model(batched_inputs).items()}
        model.eval()
        with torch.no_grad():
            results[strength] = losses, [x["instances"].scores for x in model(batched_inputs)]
    for strength in (0.0, 1.0):
        assert results[strength][0] == results[None][0]
        assert states[strength].keys() == states[None].keys()
        assert all(torch.equal(value, states[None][key]) for key, value in states[strength].items())
    assert all(torch.equal(a, b) for a, b in zip(results[0.0][1], results[None][1]))
    assert not any(torch.equal(a, b) for a, b in zip(results[1.0][1], results[None][1]))


def test_defaults_are_documented(tiny_cfg, calibration_class):
    cfg = tiny_cfg(NAME, calibration_class.__name__)
    calibration = build_calibration(cfg, SoftmaxCrossEntropy(K))
    assert calibration.strength == {LogitAdjustment: 1.0, NorCal: 0.6}[calibration_class]
    assert f"{calibration.strength} by default" in " ".join(calibration_class.__doc__.split()) or (
        "1 by default" in calibration_class.__doc__
    )
    cfg = tiny_cfg(NAME, calibration_class.__name__, STRENGTH, 2)  # an int
    assert build_calibration(cfg, SoftmaxCrossEntropy(K)).strength == 2
    assert build_calibration(tiny_cfg(), SoftmaxCrossEntropy(K)) is None


def test_counts_are_what_losses_take_for_them(frequencies, counts_file, calibration_class):
    loss = SoftmaxCrossEntropy(K)
    of_file = calibration_class(loss, counts_file).offset
    assert torch.equal(of_file, calibration_class(loss, frequencies).offset)
    samples = calibration_class(loss, OBJECTS).offset
    assert torch.equal(samples, calibration_class(loss, ClassFrequencies(OBJECTS, OBJECTS)).offset)
    for wrong, message in ((["a"] * K, "a sequence of the number"), ("none.json", "there is no file")):
        with pytest.raises(ValueError, match=message):
            calibration_class(loss, wrong)


def test_wrong_arguments_are_refused(tiny_cfg, frequencies):
    loss = SoftmaxCrossEntropy(K)
    with pytest.raises(ValueError, match=r"CALIBRATION.NAME is 'Platt'.*'LogitAdjustment', 'NorCal'"):
        build_calibration(tiny_cfg(NAME, "Platt"), loss)
    with pytest.raises(ValueError, match=r"CALIBRATION.STRENGTH must be in \[0, inf\), got -1"):
        NorCal(loss, frequencies, -1.0)
    with pytest.raises(ValueError, match="has 3 classes, but counts passed as arguments counts 7"):
        NorCal(SoftmaxCrossEntropy(3), frequencies)
    with pytest.raises(ValueError, match="has no instance counts"):
        LogitAdjustment(SoftmaxCrossEntropy(2), ClassFrequencies([1, 2]))
    NorCal(SoftmaxCrossEntropy(2), ClassFrequencies([1, 2]))  # image counts do


def test_without_counts_it_says_so(tiny_cfg):
    cfg = tiny_cfg(NAME, "NorCal", "MODEL.ROI_BOX_HEAD.CLS_LOSS.COUNTS_FILE", "", "DATASETS.TRAIN", ("nowhere",))
    with pytest.raises(ValueError, match="NorCal needs class counts to score: dataset 'nowhere'"):
        build_model(cfg)
