"""A small version of `make prove`: two kills of a real process."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_two_kills(tmp_path):
    command = [sys.executable, ROOT / "tools" / "prove.py", "--only", "kill", "--kills", "2", "--output", tmp_path]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    content = json.loads((tmp_path / "proofs.json").read_text())
    assert content["proofs"]["kill"]["passed"] and len(content["records"]["kill"]) == 2
    assert "1 of 1 proofs hold" in result.stdout and "2 kills (-9)" in (tmp_path / "reliability.md").read_text()

    # A result that is there is not made again.
    again = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and "passed before" in again.stdout
