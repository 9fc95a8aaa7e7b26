"""CachedFeaturesRCNN: GeneralizedRCNN but for fp16's rounding, computed once, and never of other weights."""

import os

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage
from PIL import Image

from eql_d2.engine.logit_statistics import logit_statistics
from eql_d2.engine.yaml_parts import training_mapper
from eql_d2.errors import InputError
from eql_d2.mini_lvis import cached_features
from eql_d2.modeling.freeze import freeze

FROZEN = ["MODEL.FREEZE", ["backbone", "proposal_generator"]]
CACHED = ["MODEL.META_ARCHITECTURE", "CachedFeaturesRCNN", *FROZEN]
ONE_SET_OF_PROPOSALS = ["MODEL.RPN.PRE_NMS_TOPK_TEST", 500, "MODEL.RPN.POST_NMS_TOPK_TEST", 200]


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """Two images with two objects each, as a data loader maps them."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "datasets"))
    rng = np.random.default_rng(0)
    images = []
    for i in range(2):
        path = tmp_path / f"{i}.png"
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        boxes = torch.tensor([[4.0, 4, 30, 30], [20, 24, 60, 60]])
        objects = Instances((64, 64), gt_boxes=Boxes(boxes), gt_classes=torch.tensor([i, 3]))
        image = torch.from_numpy(pixels[:, :, ::-1].transpose(2, 0, 1).copy())
        images.append({"file_name": str(path), "image": image, "height": 64, "width": 64, "instances": objects})
    return images


def built(tiny_cfg, *overrides):
    cfg = tiny_cfg(*ONE_SET_OF_PROPOSALS, *overrides)
    torch.manual_seed(0)
    return freeze(build_model(cfg), cfg.MODEL.FREEZE)


def losses(model, inputs):
    torch.manual_seed(1)  # of the sampling of proposals
    with EventStorage():
        return {key: value.item() for key, value in model.train()(inputs).items()}


def losses_of_whole(model, inputs):
    """Of GeneralizedRCNN's ROI heads in training, behind the rest in evaluation: its RPN draws random numbers, too."""
    with EventStorage(), torch.no_grad():
        images = model.preprocess_image(inputs)
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features, None)
        torch.manual_seed(1)
        _, found = model.roi_heads.train()(images, features, proposals, [x["instances"] for x in inputs])
    return {key: value.item() for key, value in found.items()}


def test_losses_and_detections_are_those_of_the_whole_model(tiny_cfg, inputs):
    whole, cached = built(tiny_cfg, *FROZEN), built(tiny_cfg, *CACHED)
    cached.load_state_dict(whole.state_dict())
    expected = losses_of_whole(whole.eval(), inputs)
    for _ in range(2):  # the second time from the files
        found = losses(cached, inputs)
        assert found == pytest.approx(expected, rel=1e-3)
    with torch.no_grad():
        pairs = zip(whole.eval()(inputs), cached.eval()(inputs), strict=True)
    for a, b in pairs:
        a, b = a["instances"], b["instances"]
        assert len(a) == len(b) > 10 and a.image_size == b.image_size
        torch.testing.assert_close(a.scores, b.scores, rtol=1e-2, atol=1e-4)


def test_logn_takes_its_statistics_without_pictures(tiny_cfg, inputs):
    whole, cached = built(tiny_cfg, *FROZEN).eval(), built(tiny_cfg, *CACHED).eval()
    cached.load_state_dict(whole.state_dict())
    objects = [{key: value for key, value in x.items() if key != "image"} for x in inputs]
    found = []
    for model, batch in ((whole, inputs), (cached, objects)):
        torch.manual_seed(1)  # of the sampling of proposals
        found.append(logit_statistics(model, [batch]))
    torch.testing.assert_close(found[1].mean, found[0].mean, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(found[1].deviation, found[0].deviation, rtol=1e-2, atol=1e-5)
    assert not cached.training and not cached.roi_heads.training


def test_the_frozen_part_runs_once_an_image_and_again_for_other_weights_or_pictures(tiny_cfg, inputs, monkeypatch):
    model = built(tiny_cfg, *CACHED).eval()
    computed = []
    compute = type(model)._compute
    monkeypatch.setattr(type(model), "_compute", lambda self, image: computed.append(image) or compute(self, image))
    with torch.no_grad():
        first = model(inputs)
        assert len(computed) == 2
        again = built(tiny_cfg, *CACHED).eval()(inputs)
        assert len(computed) == 2
        assert torch.equal(first[0]["instances"].scores, again[0]["instances"].scores)
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(inputs[0]["file_name"])
        os.utime(inputs[0]["file_name"], ns=(1, 1))
        model(inputs)
        assert len(computed) == 3
        weights = {key: value * 1.5 for key, value in model.state_dict().items()}
        model.load_state_dict(weights)
        model(inputs)
    assert len(computed) == 5


def test_only_the_head_learns(tiny_cfg, inputs):
    model = built(tiny_cfg, *CACHED).train()
    statistics = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    with EventStorage():
        sum(model(inputs).values()).backward()
    assert all(p.grad is None for p in model.backbone.parameters())
    assert model.roi_heads.box_predictor.cls_score.weight.grad.abs().sum() > 0
    assert all(torch.equal(value, statistics[key]) for key, value in model.backbone.state_dict().items())


def test_what_would_be_wrong_is_an_error(tiny_cfg, inputs):
    with pytest.raises(InputError, match=r"backbone is trained: set MODEL.FREEZE"):
        losses(built(tiny_cfg, *CACHED[:2]), inputs)
    for augmented in (["INPUT.RANDOM_FLIP", "horizontal"], ["INPUT.COPY_PASTE.MAX_OBJECTS", 2]):
        with pytest.raises(InputError, match="set INPUT.RANDOM_FLIP none"):
            built(tiny_cfg, *CACHED, *augmented)
    with pytest.raises(InputError, match="for given ones take GeneralizedRCNN"):
        built(tiny_cfg, *CACHED).eval().inference(inputs, detected_instances=[])


def test_the_mapper_gives_the_instances_of_detectron2s(tiny_cfg, tmp_path):
    Image.new("RGB", (128, 128)).save(tmp_path / "a.png")
    objects = [
        {"bbox": [1.5, 2.25, 30, 40.75], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 3, "iscrowd": 0},
        {"bbox": [50, 60, 8, 9], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1},
        {"bbox": [0, 0, 99, 99], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2, "iscrowd": 1},
    ]
    image = {"file_name": str(tmp_path / "a.png"), "height": 128, "width": 128, "image_id": 7, "annotations": objects}
    expected = DatasetMapper(tiny_cfg(), True)(image)
    found = training_mapper(tiny_cfg(*CACHED))(image)
    assert found["image_id"] == 7 and "image" not in found
    assert found["instances"].image_size == (128, 128)
    assert torch.equal(found["instances"].gt_boxes.tensor, expected["instances"].gt_boxes.tensor)
    assert torch.equal(found["instances"].gt_classes, expected["instances"].gt_classes)


@pytest.mark.parametrize("proposals", [5, 0])
def test_a_file_appears_whole(tmp_path, proposals):
    outputs = cached_features.Outputs(
        {"p2": torch.rand(1, 3, 4, 4).half(), "p3": torch.rand(1, 3, 2, 2).half()},
        Instances((8, 9), proposal_boxes=Boxes(torch.rand(proposals, 4)), objectness_logits=torch.rand(proposals)),
    )
    cached_features.write(tmp_path / "a", outputs)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    features, found = cached_features.read(tmp_path / "a")
    assert features.keys() == outputs.features.keys() and found.image_size == (8, 9)
    assert all(torch.equal(features[level], outputs.features[level]) for level in features)
    assert torch.equal(found.proposal_boxes.tensor, outputs.proposals.proposal_boxes.tensor)
    assert torch.equal(found.objectness_logits, outputs.proposals.objectness_logits)
