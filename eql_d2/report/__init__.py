"""A page that compares runs, or results files; needs the extra `report` (plotly, jinja2)."""

from eql_d2.report.page import write_report
from eql_d2.report.runs import read_runs

__all__ = ["read_runs", "write_report"]
