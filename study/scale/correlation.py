"""How well the order of methods here agrees with the published one: rank correlations, and pairs in the right order.

Gains are a method's figure minus softmax's: here of the same seed, there through its source's baseline
(:func:`study.scale.plan.published_gain`).
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from study.scale.plan import PUBLISHED, SOFTMAX, published_gain

DRAWINGS = 2000
CONFIDENCE = 0.95


class Agreement(NamedTuple):
    """Of one metric over the methods that both sides have."""

    methods: list[str]
    seeds: list[int]  # that all of these methods have
    spearman: float
    kendall: float
    interval: tuple[float, float]  # of Spearman's, over seeds and methods
    right_pairs: int
    pairs: int


def gains(values: Mapping[str, Mapping[int, float]], seeds: Iterable[int]) -> dict[str, float]:
    """Method -> mean over these seeds of its figure minus softmax's."""
    seeds = list(seeds)
    return {name: float(np.mean([of[s] - values[SOFTMAX][s] for s in seeds])) for name, of in values.items()}


def agreement(
    values: Mapping[str, Mapping[int, float]],
    metric: str,
    chosen: Container[str] = PUBLISHED,
    seeds: Sequence[int] | None = None,
) -> Agreement | None:
    """Of our figures with the published ones; None where fewer than three methods can be compared.

    Args:
        values: method -> seed -> percent.
        metric: "AP" or "APr" of the published figures.
        chosen: which methods take part.
        seeds: that may take part; None: all.
    """
    known = [m for m in PUBLISHED if m in values and published_gain(m, metric) is not None and m in chosen]
    if SOFTMAX not in values or len(known) < 3:
        return None
    common = set(values[SOFTMAX]).intersection(*(values[m] for m in known), *([set(seeds)] if seeds else []))
    if not common:
        return None
    order = sorted(common)
    ours = np.array([[values[m][s] - values[SOFTMAX][s] for s in order] for m in known])  # (methods, seeds)
    theirs = np.array([published_gain(m, metric) for m in known], float)
    right, pairs = pairs_in_order(ours.mean(1), theirs)
    return Agreement(
        known,
        order,
        float(stats.spearmanr(ours.mean(1), theirs).statistic),
        float(stats.kendalltau(ours.mean(1), theirs).statistic),
        interval(ours, theirs),
        right,
        pairs,
    )


def pairs_in_order(ours: np.ndarray, theirs: np.ndarray) -> tuple[int, int]:
    """Of the pairs of methods whose published figures differ, how many ours put in the same order."""
    i, j = np.triu_indices(len(ours), k=1)
    differ = theirs[i] != theirs[j]
    same = np.sign(ours[i] - ours[j]) == np.sign(theirs[i] - theirs[j])
    return int((same & differ).sum()), int(differ.sum())


def interval(ours: np.ndarray, theirs: np.ndarray, drawings: int = DRAWINGS) -> tuple[float, float]:
    """Quantiles of Spearman's correlation over drawings, with replacement, of methods and of seeds.

    Args:
        ours: (methods, seeds).
        theirs: (methods,).
    """
    rng = np.random.default_rng(0)
    num_methods, num_seeds = ours.shape
    seeds = rng.integers(num_seeds, size=(drawings, num_seeds))
    methods = rng.integers(num_methods, size=(drawings, num_methods))
    means = ours[:, seeds].mean(2).T  # (drawings, methods)
    found = correlations(
        stats.rankdata(np.take_along_axis(means, methods, 1), axis=1), stats.rankdata(theirs[methods], axis=1)
    )
    low, high = np.nanquantile(found, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's, row by row; NaN where all of a row are equal."""
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))
