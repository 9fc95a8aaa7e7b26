"""The study of plain classification: docs/examples/long_tailed_digits.py, and its table."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "long_tailed_digits.py"
SEEDS = 20


def digits_file(results: Path) -> Path:
    return results / "digits.json"


def train_digits(results: Path) -> None:
    """Make the results, unless they are there."""
    results.mkdir(parents=True, exist_ok=True)
    path = digits_file(results)
    if not path.exists():
        subprocess.run([sys.executable, EXAMPLE, "--seeds", str(SEEDS), "--output", path], check=True)


def digits_table(results: Path) -> str:
    if not digits_file(results).exists():
        return "*Not run yet.*"
    accuracies = json.loads(digits_file(results).read_text())
    return runpy.run_path(str(EXAMPLE))["table"]({name: np.array(values) for name, values in accuracies.items()})
