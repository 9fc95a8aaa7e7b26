"""Dense detectors in a run: training, resuming, evaluation, the gradient balance, sweep, export and checkpoints."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from eql_d2.engine import LongTailCheckpointer, Trainer, load_config
from eql_d2.engine.demo import category_names
from eql_d2.engine.export import detect, trace_detector
from eql_d2.engine.sweep import Sweep
from eql_d2.evaluation.compare import read_run_config

CONFIGS = Path(__file__).parents[2] / "configs" / "MiniLVIS"
DENSE = ["RETINANET", "FCOS"]


def make_cfg(datasets, folder, *overrides, loss="efl"):
    return load_config(
        CONFIGS / f"{loss}_retinanet.yaml",
        [
            *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RETINANET.NUM_CLASSES", 7),
            *("MODEL.FCOS.NUM_CLASSES", 7),
            *("DATASETS.TRAIN", (datasets[0],), "DATASETS.TEST", (datasets[1],)),
            *("SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 3),
            *("GRADIENT_BALANCE_PERIOD", 3),
            *("TEST.DETECTIONS_PER_IMAGE", 40, "TEST.FIXED_AP_DETECTIONS_PER_IMAGE", -1),
            *("OUTPUT_DIR", str(folder)),
            *overrides,
        ],
    )


def train(cfg, resume=False):
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer, trainer.train()


@pytest.fixture(scope="module")
def run(tmp_path_factory, datasets):
    """Folder, trainer and results of a short training with EFL."""
    folder = tmp_path_factory.mktemp("runs") / "efl"
    cfg = make_cfg(datasets, folder)
    trainer, results = train(cfg)
    (folder / "config.yaml").write_text(cfg.dump())
    return folder, trainer, results


def test_it_trains_and_is_evaluated_with_all_its_detections(run):
    folder, trainer, results = run
    assert {"AP", "APr", "AP-fixed"} <= results["bbox"].keys()
    assert trainer.model.max_detections_per_image == 40  # again
    assert 1 <= float(trainer.model.loss_normalizer) < 100


def test_the_gradient_balance_is_efls_own_sums_of_anchors(run):
    """Both sum |dL/dz| over anchors, the loss of the sum and the hook of the mean."""
    folder, trainer, _ = run
    (stage,) = json.loads((folder / "gradient_balance.json").read_text())["stages"]
    sums = trainer.model.cls_loss.focal_gradients
    positive, negative = (torch.tensor(stage[name], dtype=torch.float64) for name in ("positive", "negative"))
    assert (positive > 0).any() and (negative > 0).all()
    seen = positive > 0
    ratio = positive[seen] / negative[seen]
    # Each step of the hook is divided by its number of anchors, which differs little.
    torch.testing.assert_close(ratio, (sums.positive / sums.negative)[seen], rtol=0.05, atol=0)


def test_a_resumed_run_equals_an_uninterrupted_one(run, datasets, tmp_path):
    """To the last bit, and so does the moving average of the normalizer."""
    folder, whole, _ = run
    for name in ("model_0000002.pth", "metrics.json"):
        shutil.copy(folder / name, tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    resumed, _ = train(make_cfg(datasets, tmp_path, "DATASETS.TEST", ()), resume=True)
    assert resumed.start_iter == 3
    expected = whole.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_a_sweep_of_calibrations(run):
    folder, _, results = run
    (saved,) = Sweep().rows(folder)
    rows = Sweep(strengths=[0, 1.0], detections=[40], calibration="NorCal").rows(folder)
    assert saved["AP"] == pytest.approx(results["bbox"]["AP"]) == pytest.approx(rows[0]["AP"])
    assert [row["strength"] for row in rows] == [0, 1.0]


def test_names_for_the_demo(run):
    folder, _, _ = run
    cfg = load_config(folder / "config.yaml")
    assert read_run_config(folder) and cfg.MODEL.ROI_HEADS.NUM_CLASSES != 7
    assert len(category_names(cfg)) == 7


def dense_cfg(tiny_cfg, section, *overrides):
    cfg = tiny_cfg("MODEL.META_ARCHITECTURE", {"RETINANET": "LongTailRetinaNet", "FCOS": "LongTailFCOS"}[section])
    cfg.MODEL.FCOS.NORM, cfg.TEST.DETECTIONS_PER_IMAGE = "", 20
    cfg.MODEL[section].NUM_CLASSES, cfg.MODEL[section].IN_FEATURES = 7, ["p3", "p4"]
    cfg.MODEL[section].SCORE_THRESH_TEST = 1e-4
    cfg.merge_from_list(list(overrides))
    return cfg


@pytest.mark.parametrize("section", DENSE)
def test_traced_detector_gives_equal_outputs(tiny_cfg, section):
    model = build_model(dense_cfg(tiny_cfg, section, "MODEL.ROI_BOX_HEAD.CALIBRATION.NAME", "NorCal")).eval()
    for layer in (model.head.cls_subnet[0], model.head.cls_score):
        torch.nn.init.normal_(layer.weight, std=0.1)
    images = [torch.rand(3, *size) * 255 for size in ((96, 128), (64, 80))]
    traced = trace_detector(model, images[0])
    for image in images:
        for a, b in zip(detect(model, image), traced(image), strict=True):
            assert len(a) == 20
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("saved, loaded", [("EqualizationLossV2", "SigmoidFocalLoss"), ("SigmoidFocalLoss",) * 2])
def test_weights_with_and_without_a_column_of_background(tiny_cfg, tmp_path, saved, loaded):
    loss = "MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME"
    first = build_model(dense_cfg(tiny_cfg, "RETINANET", loss, saved))
    DetectionCheckpointer(first, str(tmp_path)).save("model")
    for name in (loaded, "EqualizationLossV2"):
        model = build_model(dense_cfg(tiny_cfg, "RETINANET", loss, name))
        LongTailCheckpointer(model).load(str(tmp_path / "model.pth"))
        A = model.head.bbox_pred.out_channels // 4
        rows, own = (m.head.cls_score.weight.unflatten(0, (A, -1))[:, :7] for m in (first, model))
        assert torch.equal(rows, own)
    other = dense_cfg(tiny_cfg, "RETINANET", "MODEL.ROI_BOX_HEAD.CLS_LOSS.COUNTS_FILE", "")
    other.MODEL.RETINANET.NUM_CLASSES = 9
    with pytest.raises(ValueError, match="head.cls_score.weight of the checkpoint has .* rows, but the model"):
        LongTailCheckpointer(build_model(other)).load(str(tmp_path / "model.pth"))
