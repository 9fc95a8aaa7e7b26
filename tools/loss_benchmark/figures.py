def write_figures(records, root): return []
