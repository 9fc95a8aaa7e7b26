"""python -m study.scale: its plan, its correlations, and what it makes of the lines of its runs."""

import json

import numpy as np
import pytest
from scipy import stats

from eql_d2 import CLS_LOSS_REGISTRY
from eql_d2.engine import load_config
from eql_d2.engine.checks import check_names
from eql_d2.engine.settings import loss_name
from eql_d2.mini_lvis.lvis_scale import MiniLVIS1203Spec
from study.documents import PLACE
from study.record import load
from study.runs import missing
from study.scale import correlation, documents, plan, runs
from study.scale.correlation import agreement, interval, pairs_in_order


def line(method, seed, **groups):
    scores = {"AP": 1.0, "APr": 1.0, "APc": 1.0, "APf": 1.0} | groups
    caps = {"300": scores, "150": scores}
    cost = {"resumed": False, "seconds": 120, "cpu_seconds": 60, "peak_GB": 1.0}
    return {"method": method, "seed": seed, **cost, "AP": caps}


@pytest.fixture
def results(tmp_path):
    """Three methods on three seeds, in the published order by AP; the tuning seed says the contrary."""
    values = {plan.SOFTMAX: 20.0, "EQL": 23.0, "RFS": 26.0}
    lines = [line(m, s, AP=v + s / 10, APr=v / 10) for s in plan.SEEDS for m, v in values.items()]
    lines += [line(m, plan.TUNING_SEED, AP=-v) for m, v in values.items()]
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


class TestPlan:
    def test_every_method_can_be_trained_and_every_loss_is_among_them(self):
        losses = set()
        for method in plan.methods().values():
            cfg = load_config(str(plan.CONFIG), method.overrides)
            check_names(cfg)
            losses.add(loss_name(cfg))
            assert method.first_stage is None or method.first_stage in plan.methods()
        assert losses == {name for name, _ in CLS_LOSS_REGISTRY}

    def test_the_published_run_on_all_untouched_seeds_first_and_in_halves(self):
        planned = [(method.name, seed) for method, seed in plan.runs()]
        assert len(set(planned)) == len(planned)
        count = len(plan.PUBLISHED) * len(plan.SEEDS)
        assert {name for name, _ in planned[:count]} == set(plan.PUBLISHED)
        assert plan.TUNING_SEED not in plan.SEEDS and len(plan.SEEDS) == 3
        tuned = [name for name, figures in plan.PUBLISHED.items() if figures.tuned]
        assert len(tuned) == len(plan.PUBLISHED) / 2 == 7

    def test_a_stage_comes_after_the_one_it_stands_on(self):
        planned = [(method.name, seed) for method, seed in plan.runs()]
        for method, seed in plan.runs():
            if method.first_stage:
                assert planned.index((method.first_stage, seed)) < planned.index((method.name, seed))

    def test_a_third_of_the_iterations_is_one_in_both_stages(self):
        known = plan.methods()
        for name, iterations in (("softmax", 2000), ("RFS", 3540), ("cRT", 2000), ("ECM-RFS", 3540)):
            short = known[f"{name}-third"]
            cfg = load_config(str(plan.CONFIG), short.overrides)
            assert cfg.SOLVER.MAX_ITER == iterations
            assert cfg.SOLVER.WARMUP_ITERS == (393 if name == "ECM-RFS" else 50)
        assert known["cRT-third"].first_stage == "softmax-third" and known["cRT"].first_stage == "softmax"

    def test_a_change_of_the_set_keeps_epochs_and_what_is_repeated(self):
        changed = plan.methods()["cosine-RFS-long-head"]
        cfg = load_config(str(plan.CONFIG), changed.overrides)
        images = MiniLVIS1203Spec(head_exponent=0.4).num_train_images
        assert cfg.SOLVER.MAX_ITER / images == pytest.approx(10620 / 15483, rel=1e-4)
        assert cfg.DATALOADER.REPEAT_THRESHOLD * images == pytest.approx(100)
        assert changed.data == {"head_exponent": 0.4} and cfg.MODEL.ROI_BOX_HEAD.CLS_NORM.TEMPERATURE == 20

    def test_the_whole_model_trains_all_its_parts(self):
        cfg = load_config(str(plan.CONFIG), plan.methods()["softmax-whole"].overrides)
        assert (cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.FREEZE) == ("GeneralizedRCNN", [])

    def test_repeat_factors_are_those_of_a_hundred_images_for_as_many_epochs(self):
        cfg = load_config(str(plan.CONFIG), plan.methods()["RFS"].overrides)
        assert cfg.DATALOADER.REPEAT_THRESHOLD * 15483 == pytest.approx(100)
        assert cfg.SOLVER.MAX_ITER == 10620

    def test_published_gains_go_through_the_baseline_of_their_source(self):
        assert plan.published_gain(plan.SOFTMAX, "AP") == 0
        assert plan.published_gain("EQLv2", "APr") == pytest.approx(14.9)
        assert plan.published_gain("sigmoid", "AP") == pytest.approx(16.4 - 15.2)
        assert plan.published_gain("NorCal-RFS", "APr") == pytest.approx(19.3 - 12.3 + 11.5)
        assert plan.published_gain("Seesaw", "APr") is None


class TestCorrelation:
    def test_it_is_scipys_of_the_mean_gains(self):
        rng = np.random.default_rng(0)
        names = [name for name in plan.PUBLISHED if plan.published_gain(name, "AP") is not None]
        values = {name: dict(zip((1, 2, 3), rng.normal(size=3))) for name in names}
        found = agreement(values, "AP")
        ours = [np.mean([values[n][s] - values[plan.SOFTMAX][s] for s in (1, 2, 3)]) for n in names]
        theirs = [plan.published_gain(n, "AP") for n in names]
        assert found.spearman == pytest.approx(stats.spearmanr(ours, theirs).statistic)
        assert found.kendall == pytest.approx(stats.kendalltau(ours, theirs).statistic)
        assert found.interval[0] < found.spearman < found.interval[1]
        # Kendall's tau without ties is the share of pairs in order minus that of the others.
        assert (2 * found.right_pairs - found.pairs) / found.pairs == pytest.approx(found.kendall, abs=0.02)

    def test_only_common_seeds_and_known_figures_count(self):
        values = {plan.SOFTMAX: {1: 0.0, 2: 0.0}, "EQL": {1: 1.0, 2: 9.0}, "RFS": {1: 2.0}, "Seesaw": {1: 3.0}}
        assert agreement(values, "AP").methods == [plan.SOFTMAX, "EQL", "RFS", "Seesaw"]
        assert agreement(values, "AP").seeds == [1]
        assert agreement(values, "APr").methods == [plan.SOFTMAX, "EQL", "RFS"]
        assert agreement({"EQL": {1: 1.0}, "RFS": {1: 2.0}, "LWS": {1: 1.5}}, "AP") is None  # nothing to subtract
        assert agreement({plan.SOFTMAX: {1: 0.0}, "EQL": {1: 1.0}}, "AP") is None

    def test_pairs(self):
        ours, theirs = np.array([0.0, 1, 3, 2]), np.array([0.0, 1, 2, 2])
        assert pairs_in_order(ours, theirs) == (5, 5)  # the last two are equal in theirs
        assert pairs_in_order(-ours, theirs) == (0, 5)

    def test_the_interval_narrows_with_methods_and_widens_with_noise(self):
        rng = np.random.default_rng(1)

        def width(methods, noise):
            theirs = np.arange(methods, dtype=float)
            low, high = interval(theirs[:, None] + noise * rng.normal(size=(methods, 3)), theirs, drawings=300)
            return high - low

        assert width(40, 5.0) < width(8, 5.0)
        assert width(12, 0.01) < width(12, 6.0)


class TestRuns:
    def test_what_has_a_line_is_not_made_again(self, results):
        todo = missing(plan.runs(), results)
        names = {(method.name, seed) for method, seed in todo}
        assert len(todo) == len(plan.runs()) - 9 and ("RFS", 1) not in names and ("EQLv2", 1) in names
        assert runs.minutes_left(todo, results, jobs=2) == pytest.approx(len(todo))
        assert runs.minutes_left(todo, results.with_name("none.jsonl"), jobs=2) is None

    def test_the_cost_of_a_run_that_was_stopped_is_not_known(self, results, tmp_path):
        with results.open("a") as file:
            file.write(json.dumps(line("EQLv2", 1) | {"resumed": True, "seconds": 1, "cpu_seconds": 1}) + "\n")
        records = load(results)
        assert runs.minutes_left([None], results, jobs=1) == pytest.approx(2)
        table = documents.cost_table(records, tmp_path)
        assert "EQLv2" not in table and "| RFS " in table

    def test_of_two_lines_of_a_run_the_later_counts(self, results):
        with results.open("a") as file:
            file.write(json.dumps(line("RFS", 1, AP=99.0)) + "\n")
        assert load(results)["RFS"][1]["AP"]["300"]["AP"] == 99.0

    def test_only_weights_and_logs_stay(self, tmp_path):
        (tmp_path / "inference").mkdir()
        for name in ("inference/predictions.json", "model_final.pth", "model_0001999.pth", "log.txt"):
            (tmp_path / name).touch()
        runs.clear(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"model_final.pth", "log.txt"}


class TestDocuments:
    def test_the_tuning_seed_is_kept_apart(self, results, tmp_path):
        records = load(results)
        table = documents.correlation_table(records, tmp_path)
        untouched, tuned = (
            [row for row in table.splitlines() if label in row and "| all" in row]
            for label in ("seeds 0, 1, 2", "seed 9")
        )
        assert "| 1.00 " in untouched[0] and "3 of 3" in untouched[0]
        assert "| -1.00 " in tuned[0] and "0 of 3" in tuned[0]
        assert "26.1 ± 0.1" in documents.methods_table(records, tmp_path)  # 26.0, 26.1, 26.2

    def test_other_sets_stand_beside_this_one_on_the_same_methods(self, results):
        docs = documents.Path(__file__).parents[2] / "docs"
        rows = documents.other_sets_table(load(results), docs).splitlines()[2:]
        cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
        assert [row[:3] for row in cells[:2]] == [
            ["90 categories", "AP", "3"],
            ["1,203 categories, the same methods", "AP", "3"],
        ]
        assert cells[1][4].startswith("1.00")

    def test_every_place_of_the_page_has_a_table(self):
        root = documents.Path(__file__).parents[2]
        names = [m[2] for page in documents.DOCUMENTS for m in PLACE.finditer((root / page).read_text())]
        assert sorted(names) == sorted(documents.TABLES)

    def test_a_figure_of_what_there_is(self, results):
        figure = documents.draw(documents.untouched(load(results)))
        assert [len(axis.texts) for axis in figure.axes] == [3, 3]
        assert documents.draw({}) is None


def test_published_metrics_have_a_baseline_in_the_plan():
    for name, figures in plan.PUBLISHED.items():
        assert figures.baseline is None or figures.baseline in plan.PUBLISHED, name
    assert correlation.DRAWINGS >= 1000
