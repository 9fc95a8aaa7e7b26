"""The notebook "your first tail" runs, and its numbers say what its text says."""

import json
import re
from pathlib import Path

import matplotlib
import pytest
import torch

NOTEBOOK = Path(__file__).parents[1] / "docs" / "examples" / "your_first_tail.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]


@pytest.fixture(scope="module")
def names():
    """What its cells leave behind, run one after another."""
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    matplotlib.use("Agg", force=True)
    namespace: dict = {}
    for cell in CELLS:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), namespace)
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    return namespace


def test_the_swap_lifts_the_rare_digits(names):
    softmax, seesaw, adjusted = names["evaluated"]
    for better in (seesaw, adjusted):
        assert better.metrics["APr"] > softmax.metrics["APr"] + 2
        assert better.metrics["right-r"] > softmax.metrics["right-r"] + 10
        assert better.metrics["ECE-r"] < softmax.metrics["ECE-r"] - 10
        assert abs(better.metrics["APr-fixed"] - softmax.metrics["APr-fixed"]) < 4


def test_the_gradients_say_why(names):
    rare = slice(8, 10)
    assert max(names["ratios"]["softmax"][rare]) < 0.7 and min(names["ratios"]["seesaw"][rare]) > 0.9


def test_the_intervals_hold_their_differences(names):
    for difference in names["drawn"]["differences"]:
        assert all(row["low"] < row["value"] < row["high"] for row in difference.values())


def test_its_outputs_are_there_and_show_no_machine():
    shown = [output for cell in CELLS for output in cell.get("outputs", ())]
    assert len(shown) >= 4 and any("image/png" in output.get("data", {}) for output in shown)
    assert re.findall(r"/(?:home|root|work|tmp)/|Warning|Error", json.dumps(CELLS)) == []
