import math

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.utils.events import EventStorage

from eql_d2.losses import SeesawLoss
from eql_d2.modeling import LongTailFastRCNNOutputLayers
from eql_d2.modeling.normed_linear import EmbeddingClassifier, NormedLinear

D = 16
LOSS, NORM = "MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", "MODEL.ROI_BOX_HEAD.CLS_NORM"


def classifiers(model):
    return [m.cls_score for m in model.modules() if isinstance(m, LongTailFastRCNNOutputLayers)]


def build(cfg, seed=0):
    torch.manual_seed(seed)
    return build_model(cfg)


def test_is_the_scaled_cosine():
    layer = NormedLinear(D, 3, temperature=20)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(5, D)
    for z, features in zip(layer(x).tolist(), x):
        for z_j, w, b in zip(z, layer.weight.detach(), layer.bias.tolist()):
            cosine = (features @ w).item() / math.sqrt(features @ features) / math.sqrt(w @ w)
            assert z_j == pytest.approx(20 * cosine + b, rel=1e-5, abs=1e-5)


def test_lengths_do_not_count():
    layer = NormedLinear(D, 3, temperature=20)
    x = torch.randn(5, D)
    expected = layer(x)
    torch.testing.assert_close(layer(100 * x), expected)
    with torch.no_grad():
        layer.weight *= torch.tensor([[0.1], [3.0], [50.0]])
    torch.testing.assert_close(layer(x), expected)
    assert (expected - layer.bias).abs().max() <= 20


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_of_half_precision_features_do_not_overflow(dtype):
    layer = NormedLinear(D, 3, temperature=20)
    x = torch.full((2, D), 3e4, dtype=dtype)  # whose squares are beyond fp16
    torch.testing.assert_close(layer(x), layer(torch.ones(2, D)))


def test_features_of_zero_are_safe():
    layer = NormedLinear(D, 3, temperature=20)
    x = torch.zeros(2, D, requires_grad=True)
    z = layer(x)
    assert torch.equal(z, layer.bias.expand(2, 3))
    z.sum().backward()
    assert x.grad.isfinite().all() and layer.weight.grad.isfinite().all()


def test_the_rest_of_the_model_stays_bit_equal(tiny_cfg, topology):
    """Also the weights themselves: they are the plain classifier's, only used otherwise."""
    head, overrides = topology
    name = ["MODEL.ROI_HEADS.NAME", head, LOSS, "SoftmaxCrossEntropy", *overrides]
    plain = build(tiny_cfg(*name))
    after = torch.rand(3)
    normed = build(tiny_cfg(*name, f"{NORM}.TEMPERATURE", 20.0))
    assert torch.equal(torch.rand(3), after)
    assert all(isinstance(layer, NormedLinear) for layer in classifiers(normed))
    assert not any(isinstance(layer, NormedLinear) for layer in classifiers(plain))
    state = normed.state_dict()
    assert state.keys() == plain.state_dict().keys()
    assert all(torch.equal(state[key], value) for key, value in plain.state_dict().items())


@pytest.mark.parametrize("loss", ["SeesawLoss", "EffectiveClassMarginLoss", "EqualizationLoss"])
def test_any_loss_trains_it(tiny_cfg, loss):
    (layer,) = classifiers(build(tiny_cfg(LOSS, loss, f"{NORM}.TEMPERATURE", 20.0)))
    assert isinstance(layer, NormedLinear) and layer.temperature == 20.0
    layer(torch.rand(4, layer.in_features)).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


def test_without_a_bias(tiny_cfg):
    norm = [f"{NORM}.TEMPERATURE", 1.0, f"{NORM}.BIAS", False]
    model = build(tiny_cfg(LOSS, "LDAMLoss", *norm))
    (layer,) = classifiers(model)
    assert layer.bias is None
    assert not any(key.endswith("cls_score.bias") for key in model.state_dict())
    assert layer(torch.rand(4, layer.in_features)).abs().max() <= 1


def test_contradictions_are_refused(tiny_cfg):
    with pytest.raises(ValueError, match=r"CLS_NORM.BIAS False needs .*TEMPERATURE above 0"):
        build(tiny_cfg(LOSS, "LDAMLoss", f"{NORM}.BIAS", False))
    with pytest.raises(ValueError, match="EqualizationLoss starts from a bias, but .*BIAS is False"):
        build(tiny_cfg(LOSS, "EqualizationLoss", f"{NORM}.TEMPERATURE", 20.0, f"{NORM}.BIAS", False))
    with pytest.raises(ValueError, match=r"temperature must be in \(0, inf\), got -1"):
        build(tiny_cfg(f"{NORM}.TEMPERATURE", -1.0))


def test_works_without_a_config():
    predictor = LongTailFastRCNNOutputLayers(
        D,
        box2box_transform=Box2BoxTransform((10, 10, 5, 5)),
        num_classes=3,
        cls_loss=SeesawLoss(3),
        cls_temperature=20,
    )
    logits, _, _ = predictor(torch.rand(2, D))
    assert logits.shape == (2, 5) and isinstance(predictor.cls_score, NormedLinear)


EMBEDDINGS = f"{NORM}.EMBEDDINGS"


def test_fixed_embeddings_by_the_formula():
    embeddings = torch.randn(3, 5)
    layer = EmbeddingClassifier(D, embeddings, 4, temperature=50)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(6, D)
    projected = x @ layer.projection.weight.t() + layer.projection.bias
    for row, z in zip(projected, layer(x).tolist(), strict=True):
        cosines = [(row @ e / row.norm() / e.norm()).item() for e in embeddings] + [0.0]  # background: 0
        expected = [50 * c + b for c, b in zip(cosines, layer.bias.tolist(), strict=True)]
        assert z == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("loss", ["SigmoidCrossEntropy", "SoftmaxCrossEntropy", "EqualizationLoss"])
def test_embeddings_are_a_config_key_for_any_loss_and_stay_fixed(tiny_cfg, batched_inputs, tmp_path, loss):
    embeddings = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float16)
    np.save(tmp_path / "clip.npy", embeddings)
    cfg = tiny_cfg(LOSS, loss, f"{NORM}.TEMPERATURE", 50.0, EMBEDDINGS, str(tmp_path / "clip.npy"))
    model = build(cfg)
    (layer,) = classifiers(model)
    assert torch.equal(layer.weight[:7], torch.from_numpy(embeddings).float()) and not layer.weight[7:].any()
    assert not any("cls_score.weight" in name for name in model.state_dict())
    stock = build(tiny_cfg(LOSS, loss)).state_dict()
    assert all(torch.equal(value, stock[name]) for name, value in model.state_dict().items() if "cls_score" not in name)
    with EventStorage():
        model(batched_inputs)["loss_cls"].backward()
    assert layer.projection.weight.grad.abs().sum() > 0


def test_embeddings_that_do_not_fit_are_refused(tiny_cfg, tmp_path):
    def build_with(array, temperature=50.0, **names):
        np.save(tmp_path / "e.npy", array)
        choose = [LOSS, names.get("loss", "SoftmaxCrossEntropy"), f"{NORM}.TEMPERATURE", temperature]
        return build(tiny_cfg(*choose, EMBEDDINGS, str(tmp_path / "e.npy")))

    for wrong in (np.ones((6, 5)), np.ones(7), np.ones((7, 5), int)):
        with pytest.raises(ValueError, match=r"floats of shape \(7, D\)"):
            build_with(wrong)
    for value in (0.0, np.nan, np.inf):
        array = np.ones((7, 5))
        array[2] = value
        with pytest.raises(ValueError, match=f"category 2, whose length is {value}"):
            build_with(array)
    with pytest.raises(ValueError, match="TEMPERATURE above 0"):
        build_with(np.ones((7, 5)), 0.0)
    with pytest.raises(ValueError, match="the loss has 9 logits"):
        build_with(np.ones((7, 5)), loss="SeesawLoss")
    with pytest.raises(ValueError, match="no .npy file"):
        build(tiny_cfg(f"{NORM}.TEMPERATURE", 50.0, EMBEDDINGS, str(tmp_path / "none.npy")))
