"""A sweep gives what evaluations with the same settings give, without training and for runs that are whole."""

import csv
import shutil
from pathlib import Path

import pytest
import torch

from eql_d2.cli import main
from eql_d2.engine import Trainer, load_config
from eql_d2.engine.logit_statistics import logit_statistics, training_batches
from eql_d2.engine.sweep import Sweep, config_of_run, model_of_run, sweep_runs
from eql_d2.evaluation.lvis_evaluation import LongTailLVISEvaluator
from eql_d2.modeling.calibration import LogitStatistics


@pytest.fixture(scope="module")
def run(tmp_path_factory, datasets):
    """The output folder of a short training, evaluated on its training images, and its results."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    config = Path(__file__).parents[2] / "configs" / "MiniLVIS" / "Base-MiniLVIS.yaml"
    cfg = load_config(
        config,
        [
            *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.NUM_CLASSES", 7),
            *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.01),
            *("DATASETS.TRAIN", (datasets[0],), "DATASETS.TEST", (datasets[0],)),
            *("SOLVER.MAX_ITER", 60),
            *("TEST.DETECTIONS_PER_IMAGE", 60),
            *("OUTPUT_DIR", str(folder)),
        ],
    )
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    results = trainer.train()["bbox"]
    (folder / "config.yaml").write_text(cfg.dump())
    return folder, results


def evaluated(folder, *overrides):
    """AP and APr by an evaluation with other settings."""
    cfg = config_of_run(folder).clone()
    cfg.defrost()
    cfg.merge_from_list(list(overrides))
    weights = model_of_run(cfg, folder).state_dict()
    model = Trainer.build_model(cfg)
    model.load_state_dict(weights)
    evaluator = LongTailLVISEvaluator(cfg.DATASETS.TEST[0], max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE)
    return Trainer.test(cfg, model, [evaluator])["bbox"]


def test_the_runs_own_settings_give_its_own_scores(run):
    folder, results = run
    (row,) = Sweep().rows(folder)
    (again,) = Sweep(strengths=[0]).rows(folder)
    assert (row["strength"], row["threshold"], row["detections"]) == ("saved", 0.01, 60)
    for r in (row, again):
        assert r["AP"] == pytest.approx(results["AP"]) and r["APr"] == pytest.approx(results["APr"])
    assert results["AP"] > 0


def test_rows_are_what_evaluations_with_these_settings_give(run):
    folder, _ = run
    sweep = Sweep(strengths=[0, 1.5], detections=[60, 3], thresholds=[0.01, 0.05], calibration="NorCal")
    rows = sweep.rows(folder)
    assert len(rows) == 8 and len({row["AP"] for row in rows}) > 4
    for row in rows:
        expected = evaluated(
            folder,
            *("TEST.DETECTIONS_PER_IMAGE", row["detections"]),
            *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", row["threshold"], "MODEL.ROI_BOX_HEAD.CALIBRATION.NAME", "NorCal"),
            *("MODEL.ROI_BOX_HEAD.CALIBRATION.STRENGTH", row["strength"]),
        )
        assert row["AP"] == pytest.approx(expected["AP"], rel=1e-6), row
        assert row["APr"] == pytest.approx(expected["APr"], rel=1e-6, nan_ok=True), row
        assert row["kept"] <= row["detections"]


def test_runs_that_are_not_whole_are_named_and_the_others_reported(run, datasets, tmp_path):
    folder, _ = run
    broken = {name: tmp_path / name for name in ("no_weights", "half_weights", "half_predictions", "not_there")}
    for path in list(broken.values())[:3]:
        shutil.copytree(folder, path)
    (broken["no_weights"] / "model_final.pth").unlink()
    for path in (
        broken["half_weights"] / "model_final.pth",
        broken["half_predictions"] / "inference" / datasets[0] / "instances_predictions.pth",
    ):
        path.write_bytes(path.read_bytes()[:1000])
    runs = [*broken.values(), folder]
    rows, _, skipped = sweep_runs(runs, Sweep(strengths=[0]))
    assert {row["run"] for row in rows} == {"half_predictions", "run"}
    assert "there is no" in skipped[str(broken["no_weights"])]
    assert "or damaged" in skipped[str(broken["half_weights"])]
    assert "no config.yaml" in skipped[str(broken["not_there"])]
    rows, _, skipped = sweep_runs(runs, Sweep())
    assert {row["run"] for row in rows} == {"no_weights", "half_weights", "run"}
    assert "instances_predictions.pth is half-written" in skipped[str(broken["half_predictions"])]


@pytest.mark.parametrize("asked", [{"detections": [61]}, {"detections": [-1]}, {"thresholds": [0.001]}])
def test_saved_predictions_cannot_give_more_than_they_hold(run, asked):
    with pytest.raises(ValueError, match="give --strengths 0 to predict anew"):
        Sweep(**asked).rows(run[0])


def test_the_tool(run, tmp_path, capsys):
    output = tmp_path / "tables" / "sweep.csv"
    arguments = ["sweep", str(run[0]), str(tmp_path / "none"), "--detections", "60", "5", "--output", str(output)]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == f"2 rows of 1 runs: {output}"
    assert f"skipped {tmp_path / 'none'}: " in printed.err
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert [row["detections"] for row in rows] == ["60", "5"] and "APr" in rows[0]
    assert main(["sweep", str(tmp_path / "none")]) == 1
    assert "none of the runs could be read" in capsys.readouterr().err


def test_a_strength_is_tuned_on_one_half_and_measured_on_the_other(run):
    """Against evaluations of the halves' images alone."""
    folder, _ = run
    rows, tuned = Sweep([0, 0.5, 2], calibration="NorCal", tune=["AP"], drawings=50).run(folder)
    (row,) = tuned
    assert len(rows) == 3 and row["metric"] == "AP" and row["strength"] in (0, 0.5, 2)
    assert row["gain"] == pytest.approx(row["tuned"] - row["none"])
    assert row["low"] <= row["gain"] <= row["high"] or row["strength"] == 0
    expected = "gain" if row["low"] > 0 else "loss" if row["high"] < 0 else "within chance"
    assert row["verdict"] == expected
    with pytest.raises(ValueError, match="against 0"):
        Sweep([0.5, 1], tune=["AP"])


def test_logn_takes_statistics_of_the_training_stream_and_keeps_them(run):
    folder, _ = run
    rows = Sweep([0, 1], calibration="LogN", statistics_images=8).rows(folder)
    assert rows[0]["AP"] != rows[1]["AP"]
    written = folder / "logit_statistics.json"
    statistics = LogitStatistics.from_file(str(written))
    assert len(statistics.mean) == 8 and (statistics.deviation > 0).all()
    before = written.stat().st_mtime_ns
    Sweep([1], calibration="LogN", statistics_images=8).rows(folder)
    assert written.stat().st_mtime_ns == before
    cfg = config_of_run(folder)
    model = model_of_run(cfg, folder)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    (batch,) = training_batches(cfg, 1)
    logits = []
    model.roi_heads.box_predictor.register_forward_hook(lambda _module, _args, out: logits.append(out[0]))
    found = logit_statistics(model, [batch])
    torch.testing.assert_close(found.mean, torch.cat(logits).double().mean(0))
    torch.testing.assert_close(found.deviation, torch.cat(logits).double().std(0, correction=0))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not model.roi_heads.training and "losses" not in vars(model.roi_heads.box_predictor)
