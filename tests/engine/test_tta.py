import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import verify_results
from detectron2.modeling import build_model

from eql_d2.drawing.picture import PredictionPicture
from eql_d2.engine import Trainer, load_config
from eql_d2.engine.trainer import merge_results
from eql_d2.modeling.tta import LongTailRCNNWithTTA

NAME = "eql_d2_test_tta"


@pytest.fixture
def two_images(shared_data, tmp_path):
    """Two COCO images under seven of their categories, in LVIS format."""
    data = json.loads((shared_data / "lvis" / "lvis_v1_val.json").read_text())
    categories = sorted({a["category_id"] for a in data["annotations"]})[:7]
    kept = [a for a in data["annotations"] if a["category_id"] in categories]
    images = sorted({a["image_id"] for a in kept})[:2]
    data["images"] = [image for image in data["images"] if image["id"] in images]
    data["annotations"] = [a for a in kept if a["image_id"] in images]
    data["categories"] = [c for c in data["categories"] if c["id"] in categories]
    path = tmp_path / "two_images.json"
    path.write_text(json.dumps(data))
    load_config("", ["DATASETS.REGISTER", [[NAME, str(path), str(shared_data / "coco")]]])
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture
def tta_cfg(tiny_cfg, two_images):
    """A function that makes a config which evaluates those images with three scales and a flip."""

    def make(*overrides):
        return tiny_cfg(
            *("DATASETS.TRAIN", (two_images,), "DATASETS.TEST", (two_images,)),
            *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
            *("TEST.DETECTIONS_PER_IMAGE", 20, "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (64, 96, 128)),
            *("TEST.AUG.MAX_SIZE", 192),
            *overrides,
        )

    return make


@pytest.mark.parametrize("head", ["LongTailROIHeads", "LongTailCascadeROIHeads"])
@pytest.mark.parametrize("loss", ["EqualizationLoss", "SoftmaxCrossEntropy"])
def test_scores_and_classes_come_from_the_views(tta_cfg, two_images, head, loss):
    """The merge takes Detectron2's K + 1 columns; sigmoid scores, which do not sum to 1, pass through it unchanged."""
    cfg = tta_cfg("MODEL.ROI_HEADS.NAME", head, "MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", loss)
    tta = LongTailRCNNWithTTA(cfg, build_model(cfg).eval())
    seen = set()
    get_augmented_boxes = tta._get_augmented_boxes

    def record(*args):
        boxes, scores, classes = get_augmented_boxes(*args)
        assert len(scores) == 6 * 20  # six views
        seen.update(zip(map(float, scores), map(int, classes)))
        return boxes, scores, classes

    tta._get_augmented_boxes = record
    (batch, *_) = Trainer.build_test_loader(cfg, two_images)
    with torch.no_grad():
        detections = tta(batch)[0]["instances"]
    found = set(zip(detections.scores.tolist(), detections.pred_classes.tolist()))
    assert len(detections) == 20 and found <= seen
    assert detections.image_size == (batch[0]["height"], batch[0]["width"])


def test_train_and_evaluate_with_tta(tta_cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(PredictionPicture, "_draw", lambda *args: None)  # takes longer than all the rest
    cfg = tta_cfg(
        *("MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", "EqualizationLoss"),
        *("SOLVER.MAX_ITER", 1, "SOLVER.IMS_PER_BATCH", 1),
        *("MODEL.MASK_ON", True, "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
    )
    trainer = Trainer(cfg)
    results = trainer.train()
    assert set(results) == {"bbox", "segm", "bbox_TTA", "segm_TTA"}
    assert all("APr" in scores for scores in results.values())
    assert "bbox_TTA/AP" in (tmp_path / "output" / "metrics.json").read_text()
    assert (tmp_path / "output" / "inference_TTA" / NAME).is_dir()
    evaluated = Trainer.evaluate(cfg, trainer.model)
    assert set(evaluated) == set(results)
    cfg.TEST.EXPECTED_RESULTS = [["bbox_TTA", "AP", evaluated["bbox_TTA"]["AP"], 0.01]]
    verify_results(cfg, evaluated)


def test_results_of_one_and_of_several_datasets_are_merged():
    assert merge_results({"bbox": {"AP": 1}}, {"bbox_TTA": {"AP": 2}}) == {"bbox": {"AP": 1}, "bbox_TTA": {"AP": 2}}
    both = merge_results({"a": {"bbox": {"AP": 1}}}, {"a": {"bbox_TTA": {"AP": 2}}})
    assert both == {"a": {"bbox": {"AP": 1}, "bbox_TTA": {"AP": 2}}}
    assert merge_results(None, None) == {}
