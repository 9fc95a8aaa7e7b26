"""MiniLVIS: a long-tailed dataset that generates itself, weights to start from, and a backbone for a CPU.

Importing this package registers them. Nothing of the core imports it.
"""

from eql_d2.mini_lvis import backbone, base_weights, cached_features, datasets

__all__ = ["backbone", "base_weights", "cached_features", "datasets"]
