"""From a config to evaluators: the loss's tail, and the detections that fixed AP needs."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from eql_d2.engine import Trainer, settings_of
from eql_d2.engine.checks import check_fixed_ap
from eql_d2.engine.evaluators import detections_for_fixed_ap, tail_of_loss, training_frequencies
from eql_d2.errors import InputError
from eql_d2.evaluation.registry import EVALUATOR_REGISTRY

KEY = "TEST.FIXED_AP_DETECTIONS_PER_IMAGE"


def tail(cfg):
    run = settings_of(cfg)
    rule = tail_of_loss(run, training_frequencies(run))
    return rule and str(rule)


def test_the_tail_is_that_of_the_configs_loss(tiny_cfg):
    eql = ("MODEL.ROI_HEADS.NAME", "EQLROIHeads")
    assert tail(tiny_cfg(*eql)) == "image count <= 100"
    assert tail(tiny_cfg(*eql, "MODEL.ROI_HEADS.LAMBDA", 0.02)) == "share of images < 0.02"
    key = "MODEL.ROI_BOX_HEAD.CLS_LOSS"
    softmax_eql = (f"{key}.NAME", "SoftmaxEqualizationLoss", f"{key}.SoftmaxEqualizationLoss.TAIL.GROUPS", "r")
    assert tail(tiny_cfg(*softmax_eql)) == "groups 'r'"


@pytest.mark.parametrize("head, loss", [("LongTailROIHeads", ""), ("StandardROIHeads", ""), ("FocalROIHeads", "")])
def test_other_losses_have_no_tail(tiny_cfg, head, loss):
    assert tail(tiny_cfg("MODEL.ROI_HEADS.NAME", head, "MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", loss)) is None


def test_without_counts_there_is_no_tail(tiny_cfg):
    cfg = tiny_cfg("MODEL.ROI_HEADS.NAME", "EQLROIHeads", "MODEL.ROI_BOX_HEAD.CLS_LOSS.COUNTS_FILE", "")
    cfg.DATASETS.TRAIN = ("a_dataset_that_is_not_here",)
    assert training_frequencies(settings_of(cfg)) is None and tail(cfg) is None


def test_counts_that_lack_the_number_of_images_have_no_tail_by_share(tiny_cfg, frequencies, tmp_path):
    type(frequencies)(frequencies.image_count).save(tmp_path / "counts.json")
    assert tail(tiny_cfg("MODEL.ROI_HEADS.NAME", "EQLROIHeads", "MODEL.ROI_HEADS.LAMBDA", 0.02)) is None


@pytest.mark.parametrize("head", ["EQLROIHeads", "CascadeEQLROIHeads", "StandardROIHeads"])
def test_the_model_keeps_more_detections_only_while_it_is_tested(tiny_cfg, head):
    cfg = tiny_cfg("MODEL.ROI_HEADS.NAME", head, KEY, -1)
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    model = Trainer.build_model(cfg)
    predictor = model.roi_heads.box_predictor
    predictors = list(predictor) if head.startswith("Cascade") else [predictor]
    with pytest.raises(RuntimeError), detections_for_fixed_ap(settings_of(cfg), model):
        assert {p.test_topk_per_image for p in predictors} == {-1}
        raise RuntimeError
    assert {p.test_topk_per_image for p in predictors} == {300}
    cfg.merge_from_list([KEY, 0])
    with detections_for_fixed_ap(settings_of(cfg), model):
        assert {p.test_topk_per_image for p in predictors} == {300}


def test_limits_that_make_no_sense(tiny_cfg):
    for limit in (0, -1, 300, 5000):
        check_fixed_ap(settings_of(tiny_cfg(KEY, limit)))
    with pytest.raises(ValueError, match=f"{KEY} is 100, fewer than TEST.DETECTIONS_PER_IMAGE 300"):
        check_fixed_ap(settings_of(tiny_cfg(KEY, 100)))
    with pytest.raises(ValueError, match=f"{KEY} is 5000, fewer than TEST.DETECTIONS_PER_IMAGE -1"):
        check_fixed_ap(settings_of(tiny_cfg(KEY, 5000, "TEST.DETECTIONS_PER_IMAGE", -1)))
    with pytest.raises(ValueError, match="TEST.LVIS_BACKEND 'lvis' has no fixed AP"):
        check_fixed_ap(settings_of(tiny_cfg(KEY, -1, "TEST.LVIS_BACKEND", "lvis")))


def test_an_evaluator_of_a_users_own_goes_by_its_type(tiny_cfg):
    name, made = "eql_d2_test_own_evaluator", []

    def visibility(dataset_name, *, output_dir, max_dets_per_image, **_):
        made.append((dataset_name, max_dets_per_image))
        return DatasetEvaluator()

    DatasetCatalog.register(name, lambda: [])
    MetadataCatalog.get(name).set(evaluator_type="visibility")
    cfg = tiny_cfg("DATASETS.TEST", (name,), "TEST.DETECTIONS_PER_IMAGE", 9)
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(InputError, match="evaluator_type 'visibility' in its metadata; expected 'coco' or 'lvis'"):
        Trainer.build_evaluator(cfg, name)
    EVALUATOR_REGISTRY.register(visibility)
    try:
        Trainer.build_evaluator(cfg, name)
        assert made == [(name, 9)]
    finally:
        del EVALUATOR_REGISTRY._obj_map["visibility"]
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
