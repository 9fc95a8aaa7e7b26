"""Category frequencies and datasets."""

from eql_d2.data.frequencies import ClassFrequencies, FrequenciesNotFound, TailRule, tail_ratio

__all__ = ["ClassFrequencies", "FrequenciesNotFound", "TailRule", "tail_ratio"]
