"""tests/test_hostile_files.py with ten times as many cases, new ones each time, in memory that an absurd size fills."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MEMORY = 6 * 2**30  # bytes of address space, of which importing torch and the rest takes 4
CASES = 2000  # of each kind: the profile "widely" of tests/conftest.py


def test_hostile_files_in_little_memory():
    options = ["--hypothesis-profile", "widely", "--hypothesis-show-statistics", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/test_hostile_files.py", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
    )
    assert result.returncode == 0, "\n".join(re.findall(r"(?m)^E +.*", result.stdout)) + result.stdout[-3000:]
    tried = [int(number) for number in re.findall(r"(\d+) passing", result.stdout)]
    print(f"cases that passed: {tried}")
    assert sum(tried) >= 3 * CASES
