"""FRACAL and LogN, against their formulas in plain Python, and thresholds of categories."""

import json
import math

import pytest
import torch
from detectron2.modeling import build_model

from eql_d2 import ClassFrequencies
from eql_d2.losses import BalancedGroupSoftmaxLoss, SigmoidCrossEntropy, SoftmaxCrossEntropy
from eql_d2.modeling.calibration import FRACAL, LogitStatistics, LogN, build_calibration

IMAGES, NUM_IMAGES, DIMENSION = [1, 40, 300], 1000, [1.0, 1.8, 1.9]
COUNTS = ClassFrequencies(IMAGES, IMAGES, num_images=NUM_IMAGES, fractal_dimension=DIMENSION)
K = 3
NODE = "MODEL.ROI_BOX_HEAD.CALIBRATION"


def logits(width, dtype=torch.float64):
    return (torch.randn(20, width, dtype=torch.float64) * 3).to(dtype)


@pytest.mark.parametrize("space", [0.0, 1.0, 2.0])
def test_fracal_of_a_softmax(space):
    """softmax(z + w), over Phi^space, renormalised; w = log10(1 / K) - log10(f)."""
    loss, z = SoftmaxCrossEntropy(K), logits(K + 1)
    scores = FRACAL(loss, COUNTS, space=space)(loss, z)
    for row, found in zip(z.tolist(), scores.tolist(), strict=True):
        w = [math.log10(1 / K) - math.log10(n / NUM_IMAGES) for n in IMAGES] + [0.0]
        e = [math.exp(a + b) for a, b in zip(row, w, strict=True)]
        p = [x / sum(e) / phi**space for x, phi in zip(e, [*DIMENSION, 1.0], strict=True)]
        assert found == pytest.approx([x / sum(p) for x in p], rel=1e-10)


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_fracal_of_a_sigmoid(strength):
    """sigmoid(z) sigmoid(z + w + v)^strength; v = log10(1 / K) - log10(Phi^2 / sum Phi^2)."""
    loss, z = SigmoidCrossEntropy(K), logits(K)
    scores = FRACAL(loss, COUNTS, strength)(loss, z)
    total = sum(phi**2 for phi in DIMENSION)

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    for row, found in zip(z.tolist(), scores.tolist(), strict=True):
        expected = []
        for x, n, phi in zip(row, IMAGES, DIMENSION, strict=True):
            shift = 2 * math.log10(1 / K) - math.log10(n / NUM_IMAGES) - math.log10(phi**2 / total)
            expected.append(sigmoid(x) * sigmoid(x + shift) ** strength)
        assert found == pytest.approx([*expected, 0.0], rel=1e-10)


def test_where_all_lie_alike_the_space_term_does_nothing():
    alike = ClassFrequencies(IMAGES, IMAGES, num_images=NUM_IMAGES, fractal_dimension=[1.6] * K)
    loss, z = SigmoidCrossEntropy(K), logits(K)
    torch.testing.assert_close(FRACAL(loss, alike)(loss, z), FRACAL(loss, alike, space=0.0)(loss, z))
    loss, z = SoftmaxCrossEntropy(K), logits(K + 1)
    with_space, without = FRACAL(loss, alike)(loss, z), FRACAL(loss, alike, space=0.0)(loss, z)
    ratio = (with_space / without)[:, :K]  # categories against each other stay; background gains on all
    torch.testing.assert_close(ratio, ratio[:, :1].expand(-1, K))


def statistics(width):
    return LogitStatistics(torch.linspace(-4, -1, width).double(), torch.linspace(0.5, 2, width).double())


@pytest.mark.parametrize("loss_class", [SoftmaxCrossEntropy, SigmoidCrossEntropy])
@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_logn(loss_class, strength):
    loss = loss_class(K)
    of = statistics(loss.num_logits)
    z = logits(loss.num_logits)
    normalised = z.clone()
    least = min(of.mean[:K].tolist())
    for j in range(K):
        normalised[:, j] = (z[:, j] - (of.mean[j] - least)) / of.deviation[j]
    expected = loss.probs((1 - strength) * z + strength * normalised)
    torch.testing.assert_close(LogN(loss, of, strength)(loss, z), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("loss_class", [SoftmaxCrossEntropy, SigmoidCrossEntropy])
def test_strength_zero_is_the_identity_bit_for_bit_and_near_it_nearly(loss_class):
    loss = loss_class(K)
    z = logits(loss.num_logits, torch.float32)
    for make in (lambda s: FRACAL(loss, COUNTS, s), lambda s: LogN(loss, statistics(loss.num_logits), s)):
        assert torch.equal(make(0.0)(loss, z), loss.probs(z))
        torch.testing.assert_close(make(1e-7)(loss, z), loss.probs(z), rtol=1e-4, atol=1e-6)
        assert make(1.0)(loss, z.bfloat16()).dtype == torch.float32
        for extreme in (1e4, -1e4):
            scores = make(1.0)(loss, torch.full_like(z, extreme))
            assert scores.isfinite().all() and (scores >= 0).all() and (scores <= 1).all()


def test_what_is_missing_is_said(tiny_cfg):
    loss = SoftmaxCrossEntropy(K)
    with pytest.raises(ValueError, match="number of annotated images"):
        FRACAL(loss, ClassFrequencies(IMAGES))
    with pytest.raises(ValueError, match="eql-d2 counts"):
        FRACAL(loss, ClassFrequencies(IMAGES, num_images=NUM_IMAGES))
    FRACAL(loss, ClassFrequencies(IMAGES, num_images=NUM_IMAGES), space=0.0)  # does without
    with pytest.raises(ValueError, match="SPACE must be"):
        FRACAL(loss, COUNTS, space=-1.0)
    with pytest.raises(ValueError, match=r"statistics of 3 logits, but SoftmaxCrossEntropy has 4"):
        LogN(loss, statistics(K))
    grouped = BalancedGroupSoftmaxLoss(K, frequencies=COUNTS)
    with pytest.raises(ValueError, match="choose another"):
        LogN(grouped, statistics(grouped.num_logits))
    with pytest.raises(ValueError, match="STATISTICS"):
        build_calibration(tiny_cfg(f"{NODE}.NAME", "LogN"), SoftmaxCrossEntropy(7))


@pytest.mark.parametrize("key", ["SPACE", "STATISTICS", "STRENGTH"])
def test_a_key_that_the_calibration_does_not_read_is_an_error(tiny_cfg, key):
    from eql_d2.engine.checks import check_names

    name = "" if key == "STRENGTH" else "NorCal"
    value = "file.json" if key == "STATISTICS" else 1.5
    with pytest.raises(ValueError, match=rf"{NODE}.{key} is .*, but {NODE}.NAME is '{name}'"):
        check_names(tiny_cfg(f"{NODE}.NAME", name, f"{NODE}.{key}", value))


def test_they_are_built_from_a_config(tiny_cfg, tmp_path):
    (tmp_path / "statistics.json").write_text(json.dumps({"mean": [0.0] * 8, "deviation": [2.0] * 8}))
    cfg = tiny_cfg(f"{NODE}.NAME", "LogN", f"{NODE}.STATISTICS", str(tmp_path / "statistics.json"))
    assert build_calibration(cfg, SoftmaxCrossEntropy(7)).scale.tolist() == [2.0] * 7 + [1.0]
    cfg = tiny_cfg(f"{NODE}.NAME", "FRACAL", f"{NODE}.SPACE", 0.0, f"{NODE}.STRENGTH", 2.0)
    fracal = build_calibration(cfg, SoftmaxCrossEntropy(7))
    assert (fracal.space, fracal.strength) == (0.0, 2)


def test_scores_below_the_threshold_of_their_category_are_no_detections(tiny_cfg, tmp_path, batched_inputs):
    def detect(*overrides):
        torch.manual_seed(0)
        all_of_them = "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", -1
        model = build_model(tiny_cfg(*all_of_them, *overrides)).eval()
        with torch.no_grad():
            return [x["instances"] for x in model(batched_inputs)]

    plain = detect()
    values = torch.cat([x.scores for x in plain])
    thresholds = [0.0, 2.0, *[float(values.median())] * 5]
    (tmp_path / "thresholds.json").write_text(json.dumps({"thresholds": thresholds}))
    kept = detect("MODEL.ROI_BOX_HEAD.THRESHOLDS_FILE", str(tmp_path / "thresholds.json"))
    assert sum(map(len, kept)) > 0
    for before, after in zip(plain, kept, strict=True):
        high = before.scores >= torch.tensor(thresholds)[before.pred_classes]
        assert torch.equal(after.scores, before.scores[high])
        assert not (after.pred_classes == 1).any()
    (tmp_path / "thresholds.json").write_text(json.dumps({"thresholds": [0.5] * 3}))
    with pytest.raises(ValueError, match=r"thresholds of 3 categories .*THRESHOLDS_FILE.* has 7"):
        detect("MODEL.ROI_BOX_HEAD.THRESHOLDS_FILE", str(tmp_path / "thresholds.json"))
