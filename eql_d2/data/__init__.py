"""Category frequencies and datasets; a name is imported when it is first used, since some need torch."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eql_d2.data.frequencies import ClassFrequencies, FrequenciesNotFound, TailRule, tail_ratio

__all__ = ["ClassFrequencies", "FrequenciesNotFound", "TailRule", "tail_ratio"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'eql_d2.data' has no attribute '{name}'")
    return getattr(importlib.import_module("eql_d2.data.frequencies"), name)
