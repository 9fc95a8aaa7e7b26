"""python -m study: what it plans, that it trains and goes on, and that the documents show its results."""

import json
from pathlib import Path

import pytest
from scipy import stats

from eql_d2 import CLS_LOSS_REGISTRY
from eql_d2.engine import load_config
from eql_d2.engine.settings import loss_name

ROOT = Path(__file__).parents[2]
from study import calibrations, documents, plan, record, runs, seeds

RESULTS = ROOT / "docs" / "benchmark"
TINY = {"num_categories": 6, "num_train_images": 12, "num_val_images": 6, "max_image_count": 8, "min_val_images": 2}


def all_rows():
    return [row for rows in plan.studies().values() for row in rows]


def test_every_registered_loss_is_trained_and_the_key_ones_five_times():
    losses = {row.variant.name: row.variant for row in plan.studies()["losses"]}
    assert set(losses) == {name for name, _ in CLS_LOSS_REGISTRY}
    for name, variant in losses.items():
        config = load_config(str(plan.CONFIGS / variant.config), variant.overrides)
        assert loss_name(config) == name
        assert len(variant.seeds) == (5 if name in plan.KEY_LOSSES else 3) and 0 not in variant.seeds


def test_a_new_loss_is_in_the_plan_by_its_name():
    class NewLoss:
        pass

    CLS_LOSS_REGISTRY._do_register("NewLoss", NewLoss)
    try:
        (variant,) = (row.variant for row in plan.studies()["losses"] if row.variant.name == "NewLoss")
        assert (f"{plan.LOSS}.NAME", "NewLoss") == variant.overrides
    finally:
        del CLS_LOSS_REGISTRY._obj_map["NewLoss"]


def test_variants_can_be_trained_and_one_name_is_one_variant():
    by_name = {}
    for variant, baseline in all_rows():
        assert by_name.setdefault(variant.name, variant) == variant
        load_config(str(plan.CONFIGS / variant.config), variant.overrides)
        assert baseline is None or baseline in by_name


def test_the_interval_is_that_of_a_paired_t_test():
    a, b = {1: 41.0, 2: 43.5, 3: 40.2, 5: 50.0}, {1: 37.2, 2: 38.0, 3: 38.4, 4: 1.0}
    ours = seeds.interval(seeds.paired_differences(a, b))
    expected = stats.ttest_rel([41.0, 43.5, 40.2], [37.2, 38.0, 38.4]).confidence_interval(0.95)
    assert ours == pytest.approx((expected.low, expected.high))
    assert seeds.difference(a, b) == f"+3.7 [{expected.low:+.1f}, {expected.high:+.1f}]"
    assert seeds.difference({1: 5.0, 2: 5.1}, {1: 1.0, 2: 1.0}).startswith("**+4.0")
    assert seeds.difference({1: 5.0}, {1: 1.0}) == "+4.0" and seeds.difference({1: 5.0}, {2: 1.0}) == ""


@pytest.fixture
def workshop(tmp_path):
    return runs.Workshop(tmp_path / "datasets", tmp_path / "output", tmp_path / "results" / record.RUNS, "abc")


def tiny(name, *overrides, **changes):
    overrides += ("SOLVER.MAX_ITER", 5, "MODEL.ROI_HEADS.NUM_CLASSES", 6)
    return plan.Variant(name, "sigmoid_faster_rcnn.yaml", overrides, seeds=(1,), data=TINY, **changes)


def test_runs_are_recorded_failures_named_and_nothing_is_made_twice(workshop):
    variants = [tiny("second", first_stage="first"), tiny("first", "MODEL.WEIGHTS", ""), tiny("broken", "SEED", "x")]
    todo = runs.missing(plan.planned(sorted(variants, key=lambda v: v.name == "second")), workshop.results)
    failures = runs.train_all(todo, jobs=2, workshop=workshop)
    assert list(failures) == ["broken, seed 1"] and "benchmark_log.txt" in failures["broken, seed 1"]

    (kept,) = record.load(workshop.results)["first"].values()
    evaluated = json.loads((workshop.output / "first" / "1" / "metrics.json").read_text().splitlines()[-1])
    assert kept["AP"]["300"]["AP"] == pytest.approx(evaluated["bbox/AP"], rel=1e-4)
    assert kept["AP"]["fixed"]["AP"] == pytest.approx(evaluated["bbox/AP-fixed"], rel=1e-4)
    assert len(kept["categories"]["images"]) == 6 and kept["commit"] == "abc"
    assert "$DETECTRON2_DATASETS" in " ".join(kept["arguments"]) and "/tmp" not in " ".join(kept["arguments"])
    log = (workshop.output / "second" / "1" / "log.txt").read_text()
    assert "first/1/model_final.pth" in log

    assert [v.name for v, _ in runs.missing(plan.planned(variants), workshop.results)] == ["broken"]


def test_the_documents_show_the_results_that_are_committed():
    records = record.load(RESULTS / record.RUNS)
    for name in documents.DOCUMENTS:
        places = list(documents.PLACE.finditer((ROOT / name).read_text()))
        assert places, f"{name} shows no results"
        for place in places:
            assert documents.table(place[2], records, RESULTS) in place[0], f"{name}, {place[2]}: run make benchmark"


def test_corrected_scores_have_a_row_for_each_run_and_calibration(tmp_path):
    line = {"variant": "softmax", "seed": 1, "calibration": "NorCal", "metric": "AP", "strength": 0.6}
    line |= {"none": 50.04, "tuned": 52.04, "gain": 2.0, "low": 1.5, "high": 2.5, "verdict": "gain"}
    chance = {
        "seed": 2,
        "strength": 1,
        "none": 51.0,
        "gain": -0.1,
        "low": -0.5,
        "high": 0.3,
        "verdict": "within chance",
    }
    lines = [line, line | chance, line | {"metric": "APr"}, line | {"calibration": "LogN"}]
    (tmp_path / calibrations.FILE).write_text("".join(json.dumps(x) + "\n" for x in lines))
    cells = [[c.strip() for c in row.split("|")] for row in calibrations.calibration_table(tmp_path).splitlines()]
    first = dict(zip(cells[0], cells[2]))
    assert first["run"] == "`softmax`" and first["calibration"] == "`NorCal`"
    assert first["AP, without"] == "50.0, 51.0" and first["strength by AP"] == "0.6, 1"
    assert first["AP, gain"] == "**+2.0 [+1.5, +2.5]**, -0.1 [-0.5, +0.3]"
    assert first["APr, gain"] == "**+2.0 [+1.5, +2.5]**" and len(cells) == 4
