"""Proof that annotation files and configs, whatever is in them, either work or are one clear error."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

from proofs.interruptions import Workshop
from proofs.runs import ROOT, Failed

TESTS = ROOT / "tests" / "test_hostile_files.py"
CASES = 2000  # of each kind: the profile "prove" of tests/conftest.py
MEMORY = 6 * 2**30  # bytes of address space, of which importing torch and the rest takes 4
TIMEOUT = 3600  # seconds


def fuzz(workshop: Workshop) -> dict:
    """Hostile annotation files and configs, in little memory: each works or is one clear error."""
    tried = run_fuzz(TESTS, workshop.seed, workshop.folder / "fuzz.txt")
    kinds = ", ".join(f"{name.replace('test_', '').replace('_', ' ')} {count}" for name, count in tried.items())
    return {
        "what": f"{sum(tried.values())} hostile annotation files and configs (seed {workshop.seed})",
        "seen": f"each worked or was one clear error, within {MEMORY // 2**30} GiB of address space; tried: {kinds}",
    }


def run_fuzz(tests: Path, seed: int, console: Path, cases: int = CASES) -> dict[str, int]:
    """Run pytest on a file; returns how many cases hypothesis says that it tried, by test.

    Raises:
        Failed: a case that fails, or fewer than ``cases`` of a kind.
    """
    options = ["--hypothesis-profile", "prove", "--hypothesis-seed", str(seed), "--hypothesis-show-statistics"]
    with open(console, "w") as output:
        code = subprocess.run(
            [sys.executable, "-m", "pytest", str(tests), *options, "--show-capture=no", "-p", "no:cacheprovider"],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
            cwd=ROOT,
            timeout=TIMEOUT,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),
        ).returncode
    text = console.read_text()
    if code != 0:
        failed = re.findall(r"^(?:FAILED|ERROR) .*", text, flags=re.MULTILINE)
        raise Failed(f"exit code {code} of pytest, {failed}, see {console}")
    tried = cases_tried(text)
    if not tried or min(tried.values()) < cases:
        raise Failed(f"{tried or 'nothing'} was tried, expected at least {cases} of each, see {console}")
    return tried


def cases_tried(statistics: str) -> dict[str, int]:
    """The cases that passed, by test, of what ``--hypothesis-show-statistics`` prints."""
    _, *parts = re.split(r"^\S+::(\w+):$", statistics, flags=re.MULTILINE)
    return {name: sum(map(int, re.findall(r"(\d+) passing", part))) for name, part in zip(parts[::2], parts[1::2])}
