"""Expected calibration error by cases that can be added up by hand."""

import numpy as np
import pytest

from eql_d2.evaluation.calibration_error import MIN_SCORE, calibration


def test_two_bins_by_hand():
    """Four of score 0.9, three right: 0.15 off. Two of score 0.3, none right: 0.3 off. Mean by number: 0.2."""
    result = calibration(np.array([0.9, 0.9, 0.9, 0.9, 0.3, 0.3]), np.array([1, 1, 1, 0, 0, 0], dtype=bool))
    assert result["detections"] == 6
    assert result["ece"] == pytest.approx((4 * 0.15 + 2 * 0.3) / 6)
    assert result["precision"] == pytest.approx(0.5) and result["score"] == pytest.approx(0.7)
    assert result["bias"] == pytest.approx(0.2)
    high = next(b for b in result["bins"] if b["low"] <= 0.9 < b["high"])
    assert (high["detections"], high["precision"], high["score"]) == (4, 0.75, pytest.approx(0.9))


def test_errors_of_opposite_sign_do_not_cancel_in_ece_but_do_in_bias():
    result = calibration(np.array([0.2, 0.8]), np.array([True, False]))
    assert result["ece"] == pytest.approx(0.8) and result["bias"] == pytest.approx(0)


def test_scores_that_are_probabilities_have_little_error_and_their_squares_much():
    rng = np.random.default_rng(0)
    probability = rng.uniform(MIN_SCORE, 1, 200_000)
    hit = rng.uniform(size=len(probability)) < probability
    assert calibration(probability, hit)["ece"] < 0.01
    assert calibration(probability**2, hit)["ece"] > 0.1 and calibration(probability**2, hit)["bias"] < -0.1


def test_low_scores_are_in_the_bins_but_not_in_the_error():
    low = calibration(np.full(1000, 0.001), np.zeros(1000, dtype=bool))
    assert low["detections"] == 0 and low["ece"] is low["precision"] is low["bias"] is None
    assert low["bins"][0]["detections"] == 1000 and low["bins"][0]["score"] == pytest.approx(0.001)
    both = calibration(np.array([0.001] * 1000 + [0.5]), np.array([False] * 1000 + [True]))
    assert both["detections"] == 1 and both["ece"] == pytest.approx(0.5)


def test_bins_are_closed_below_and_the_last_above():
    scores = np.array([0.0, MIN_SCORE, 0.5, 1.0])
    result = calibration(scores, np.ones(4, dtype=bool))
    assert [i for i, b in enumerate(result["bins"]) if b["detections"]] == [0, 1, 10, 19]
    assert result["detections"] == 3 and len(result["bins"]) == 20
    assert [b["high"] for b in result["bins"][:-1]] == [b["low"] for b in result["bins"][1:]]


def test_no_detections():
    result = calibration(np.zeros(0), np.zeros(0, dtype=bool))
    assert result["detections"] == 0 and result["ece"] is None
    assert all(b["precision"] is None for b in result["bins"])
