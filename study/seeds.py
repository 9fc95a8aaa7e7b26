"""Mean, spread and paired differences over seeds."""

from statistics import mean, stdev

from scipy import stats

from eql_d2.evaluation.compare import mean_and_spread

CONFIDENCE = 0.95


def values(records: dict[int, dict], cap: str, metric: str, table: str = "AP") -> dict[int, float]:
    """Seed -> percent, of the runs that have it."""
    found = {seed: record[table].get(cap, {}).get(metric) for seed, record in records.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def spread(by_seed: dict[int, float]) -> str:
    """`mean ± sample standard deviation`, empty without a value."""
    return mean_and_spread(list(by_seed.values())) if by_seed else ""


def paired_differences(by_seed: dict[int, float], baseline: dict[int, float]) -> list[float]:
    """Of the seeds that both have: same data, order and initial weights."""
    return [by_seed[seed] - baseline[seed] for seed in sorted(by_seed.keys() & baseline.keys())]


def interval(differences: list[float]) -> tuple | None:
    """The 95 % confidence interval of their mean by Student's t; None of fewer than two."""
    if len(differences) < 2:
        return None
    error = stdev(differences) / len(differences) ** 0.5
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, len(differences) - 1) * error
    return mean(differences) - reach, mean(differences) + reach


def difference(by_seed: dict[int, float], baseline: dict[int, float]) -> str:
    """`+mean [low, high]`, bold where the interval leaves out 0; empty without a common seed."""
    differences = paired_differences(by_seed, baseline)
    if not differences:
        return ""
    limits = interval(differences)
    return f"{mean(differences):+.1f}" if limits is None else with_interval(mean(differences), *limits)


def with_interval(value: float, low: float, high: float) -> str:
    """`+value [low, high]`, bold where the interval leaves out 0."""
    text = f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"**{text}**" if low > 0 or high < 0 else text
