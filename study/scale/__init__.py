"""Does a set of 1,203 categories on a CPU predict LVIS? `python -m study.scale`; docs/benchmark_1203.md."""
