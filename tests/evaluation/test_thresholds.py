"""Thresholds of largest F1, against every threshold tried, and the command on LVIS-format files."""

import json

import numpy as np
import pytest

from eql_d2.cli import main
from eql_d2.evaluation.lvis_metrics import Detections, GroundTruth, match_lvis
from eql_d2.evaluation.thresholds import Outcomes, halves, precision_recall_f1


def outcomes_of(truth, results):
    truth, detections = GroundTruth.load(truth), Detections.from_results(results, "bbox")
    return Outcomes.of(match_lvis(truth, detections, "bbox", -1))


def f1_of(outcomes, category, threshold):
    own = (outcomes.category == category) & (outcomes.score >= threshold)
    return 2 * outcomes.hit[own].sum() / (own.sum() + (outcomes.object_category == category).sum())


@pytest.mark.parametrize("seed", range(4))
def test_no_other_threshold_has_a_larger_f1(cases, seed):
    outcomes = outcomes_of(*cases.random_case(seed))
    thresholds = outcomes.thresholds()
    for category in np.unique(outcomes.category[outcomes.hit]):
        best = max(f1_of(outcomes, category, score) for score in [*outcomes.score, 2.0])
        assert f1_of(outcomes, category, thresholds[category]) == pytest.approx(best)
    hits, detections, objects = outcomes.counts(thresholds)
    assert (hits <= detections).all() and (hits <= objects).all()


def test_by_hand():
    """Category 0: hits at 0.9 and 0.3, a false one at 0.5, three objects; category 1: nothing is hit."""
    outcomes = Outcomes(
        category=np.array([0, 0, 0, 1]),
        image=np.array([0, 1, 2, 3]),
        score=np.array([0.9, 0.5, 0.3, 0.4]),
        hit=np.array([True, False, True, False]),
        object_category=np.array([0, 0, 0, 1]),
        object_image=np.array([0, 2, 3, 3]),
        num_classes=3,
    )
    # F1 at 0.9: 2 / 4; at 0.5: 2 / 5; at 0.3: 4 / 6. All together: at 0.9: 2 / 5; at 0.3: 4 / 8, which category 1 gets.
    assert outcomes.thresholds().tolist() == [0.3, 0.9 if 2 / 5 > 4 / 8 else 0.3, 0.3]
    assert outcomes.counts(np.array([0.3, 0.45, 0.0])).tolist() == [[2, 0, 0], [3, 0, 0], [3, 1, 0]]
    means = precision_recall_f1(outcomes.counts(np.array([0.3, 0.45, 0.0])))
    assert means == pytest.approx(((2 / 3 + 0) / 2, (2 / 3 + 0) / 2, (4 / 6 + 0) / 2))
    first = outcomes.within(np.array([0, 1]))
    assert first.score.tolist() == [0.9, 0.5] and first.object_category.tolist() == [0]
    assert np.isnan(precision_recall_f1(np.zeros((3, 2)))).all()


def test_halves():
    first, second = halves(9, seed=3)
    assert sorted([*first, *second]) == list(range(9)) and len(first) == 4
    assert not np.array_equal(first, halves(9, seed=4)[0])


def test_the_command(cases, tmp_path, capsys):
    truth, results = cases.random_case(0)
    for annotation in truth["annotations"]:
        annotation["id"] += 1
    files = [tmp_path / name for name in ("results.json", "truth.json", "thresholds.json")]
    for path, content in zip(files, (results, truth), strict=False):
        path.write_text(json.dumps(content))
    assert main(["thresholds", *map(str, files[:2]), "--output", str(files[2])]) == 0
    assert "precision %" in capsys.readouterr().out
    written = json.loads(files[2].read_text())
    assert written["thresholds"] == pytest.approx(outcomes_of(truth, results).thresholds(), rel=1e-5)
    assert written["category_ids"] == sorted(c["id"] for c in truth["categories"])
