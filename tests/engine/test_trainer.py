"""The whole way on a small MiniLVIS: train, evaluate, draw, resume."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator

from eql_d2.engine import LongTailCheckpointer, Trainer, summarize_run
from eql_d2.engine.evaluators import PICTURE


@pytest.fixture
def cfg(tiny_cfg, datasets):
    return tiny_cfg(
        *("MODEL.ROI_HEADS.NAME", "EQLROIHeads", "MODEL.ROI_BOX_HEAD.CLS_LOSS.COUNTS_FILE", ""),
        *("DATASETS.TRAIN", (datasets[0],), "DATASETS.TEST", (datasets[1],)),
        *("SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.IMS_PER_BATCH", 2),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
    )


def train(cfg, resume=False):
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer, trainer.train()


def test_train_evaluate_draw_and_resume(cfg, tmp_path):
    trainer, results = train(cfg)
    assert set(results["bbox"]) >= {"AP", "APr", "APc", "APf"}
    # Counts were made on first use, kept beside the output, and agree with the file's own fields.
    counts = json.loads((tmp_path / "output" / f"class_counts_{cfg.DATASETS.TRAIN[0]}.json").read_text())
    categories = json.loads(open(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).json_file).read())["categories"]
    assert counts["image_count"] == [c["image_count"] for c in categories]
    assert counts["groups"] == "".join(c["frequency"] for c in categories)

    inference = tmp_path / "output" / "inference" / cfg.DATASETS.TEST[0]
    assert (inference / PICTURE).stat().st_size > 10_000
    summary = summarize_run(cfg, results)
    for expected in ("APr", str(inference / PICTURE), "model_final.pth", "metrics.json", "log.txt"):
        assert expected in summary or expected == "log.txt"  # the logger is set up by the tool

    cfg.SOLVER.MAX_ITER = 6
    resumed, _ = train(cfg, resume=True)
    assert resumed.start_iter == 4 and resumed.iter == 6
    before = trainer.model.state_dict()["roi_heads.box_predictor.cls_score.weight"]
    after = resumed.model.state_dict()["roi_heads.box_predictor.cls_score.weight"]
    assert not torch.equal(before, after)


def test_evaluation_needs_no_training_annotations(cfg, datasets):
    cfg.DATASETS.TRAIN = ("a_dataset_that_is_not_here",)
    with pytest.raises(ValueError, match="a_dataset_that_is_not_here.*not registered"):
        Trainer(cfg)
    model = Trainer.build_model(cfg)
    LongTailCheckpointer(model).load("")
    results = Trainer.test(cfg, model)
    assert "APr" in results["bbox"]


def test_results_of_a_run_that_evaluates_nothing_are_empty(cfg):
    cfg.DATASETS.TEST = ()
    _, results = train(cfg)
    assert results == {}
    assert summarize_run(cfg, results).startswith("done.")


def test_a_new_training_starts_the_loss_anew_and_a_resumed_one_goes_on(cfg, tmp_path):
    cfg.MODEL.ROI_HEADS.NAME = "LongTailROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME = "InfluenceBalancedLoss"
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.START_ITER = 2
    cfg.DATASETS.TEST = ()
    train(cfg)

    def steps_after_loading(resume):
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=resume)
        return trainer.model.roi_heads.box_predictor.cls_loss.steps.item()

    assert steps_after_loading(resume=True) == 4
    cfg.MODEL.WEIGHTS = str(tmp_path / "output" / "model_final.pth")
    assert steps_after_loading(resume=False) == 0


def test_what_would_fail_after_training_fails_before(cfg):
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.AMP.PRECISION = True, "fp16"
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        Trainer(cfg)
    cfg.SOLVER.AMP.ENABLED, cfg.SOLVER.ACCUMULATE_STEPS = False, 3
    with pytest.raises(ValueError, match="IMS_PER_BATCH is 2, SOLVER.ACCUMULATE_STEPS 3"):
        Trainer(cfg)
    cfg.SOLVER.ACCUMULATE_STEPS = 1
    name = "eql_d2_test_no_evaluator"
    DatasetCatalog.register(name, lambda: [])
    cfg.DATASETS.TEST = (name,)
    with pytest.raises(ValueError, match=f"'{name}'.*evaluator_type None.*'coco' or 'lvis'"):
        Trainer(cfg)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_a_picture_that_cannot_be_drawn_costs_no_results(cfg):
    cfg.DATASETS.TRAIN = ("lvis_v1_train",)  # counts of other categories
    cfg.MODEL.ROI_HEADS.NAME = "LongTailROIHeads"  # softmax cross-entropy, which needs no counts
    model = Trainer.build_model(cfg)
    assert "APr" in Trainer.test(cfg, model)["bbox"]


def test_classifier_lr_factor(cfg):
    cfg.merge_from_list(["SOLVER.CLASSIFIER_LR_FACTOR", 20.0])
    model = Trainer.build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    lr = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        factor = 20 if "cls_score" in name else 1
        assert lr[id(parameter)] == pytest.approx(cfg.SOLVER.BASE_LR * factor), name


def test_coco_evaluator(cfg, shared_data):
    name = "eql_d2_test_coco"
    MetadataCatalog.get(name).set(
        evaluator_type="coco",
        json_file=str(shared_data / "coco" / "annotations" / "instances_val2017.json"),
    )
    cfg.DATASETS.TRAIN = ()
    assert isinstance(Trainer.build_evaluator(cfg, name), COCOEvaluator)
    MetadataCatalog.remove(name)
