"""What the tests of the evaluation share."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cases():
    """test_lvis_metrics.py, for its random ground truth and detections, and the LVIS API that it calls."""
    spec = importlib.util.spec_from_file_location("lvis_cases", Path(__file__).with_name("test_lvis_metrics.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
