"""A small version of `make prove`: two kills of a real process; and that each proof fails where it should."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import prove
from proofs import processes
from proofs.fuzz import run_fuzz
from proofs.interruptions import check_nothing_is_lost, check_one_error, check_start, stop
from proofs.runs import PERIOD, Failed, check_equal


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


def test_a_failed_proof_is_told(tmp_path, monkeypatch, capsys):
    def fails(workshop):
        """What never holds."""
        raise Failed("seen otherwise")

    monkeypatch.setitem(prove.PROOFS, "kill", fails)
    monkeypatch.setattr(sys, "argv", ["prove.py", "--only", "kill", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="1"):
        prove.main()
    assert "0 of 1 proofs hold" in capsys.readouterr().out
    assert "FAILS" in (tmp_path / "reliability.md").read_text()


# ---- kill, signals, full_disk, lost_data ----


def a_run(**seen):
    """A run that has been seen to do this."""
    seen = {"started": 10, "finished": 9, "checkpoint": 9, "code": 1, "errors": ["error: image 7"], **seen}
    return SimpleNamespace(
        console="console.txt",
        output=lambda: "Starting training",
        started_from=lambda: seen["started"],
        last_finished=lambda: seen["finished"],
        checkpoint_iteration=lambda: seen["checkpoint"],
        kill=lambda signum: seen["code"],
        errors=lambda: seen["errors"],
        process=SimpleNamespace(returncode=seen["code"]),
    )


def test_more_than_a_period_lost():
    assert check_start(a_run(), before=(9 + PERIOD, 9)) == PERIOD
    with pytest.raises(Failed, match=f"{PERIOD + 1} iterations lost"):
        check_start(a_run(), before=(10 + PERIOD, 9))
    with pytest.raises(Failed, match="started from iteration 0, but the last checkpoint is of 9"):
        check_start(a_run(started=0), before=(9, 9))


def test_a_signal_that_is_not_obeyed():
    with pytest.raises(Failed, match="exit code 0 after SIGTERM"):
        stop(a_run(code=0), 15, "training")
    with pytest.raises(Failed, match="the checkpoint is of iteration 4, but 9 was done"):
        stop(a_run(code=143, checkpoint=4), 15, "training")
    with pytest.raises(Failed, match="no command to go on by"):
        stop(a_run(code=143), 15, "training")


def test_an_error_that_is_not_told():
    check_nothing_is_lost(a_run())
    check_one_error(a_run(), "image 7")
    for wrong in ({"code": 0}, {"errors": []}, {"errors": 2 * ["error: image 7"]}, {"errors": ["error: ?"]}):
        with pytest.raises(Failed, match="expected 1 and one that names image 7"):
            check_one_error(a_run(**wrong), "image 7")


def test_another_end(tmp_path):
    """Of the weights, by one bit, or of the metrics."""

    def ended(name, weight, loss):
        (tmp_path / name).mkdir()
        torch.save({"model": {"w": torch.tensor([1.0, weight])}, "iteration": 3}, tmp_path / name / "model_final.pth")
        return SimpleNamespace(folder=tmp_path / name, metrics=lambda: [{"total_loss": loss}])

    reference = ended("reference", 2.0, 0.5)
    assert check_equal(ended("same", 2.0, 0.5), reference) == 3
    with pytest.raises(Failed, match="model.w of the final checkpoints differ"):
        check_equal(ended("weights", 2.0 + 2.0**-22, 0.5), reference)
    with pytest.raises(Failed, match="metrics.json of .* differ"):
        check_equal(ended("metrics", 2.0, 0.6), reference)


# ---- processes ----


@pytest.fixture
def trained(tmp_path):
    """A function that makes the folder of a training, which moved a weight from 0 by 1."""

    def make(name, loss=0.5, count=8.0, weight=1.0):
        folder = tmp_path / name
        folder.mkdir()
        metrics = {"total_loss": {"smoothed": True, "values": [[0.7, 38], [loss, 39]]}}
        for file, value in (("model_0000019", 0.0), ("model_final", weight)):
            model = {"w": torch.tensor([5.0, value], dtype=torch.float64), "head.cls_loss.counts": torch.tensor(count)}
            state = {"model": model, "trainer": {"hooks": {"Resumption": {"metrics": metrics}}}}
            torch.save(state, folder / f"{file}.pth")
        return folder

    return make


@pytest.mark.parametrize(
    "name, near, far",
    [
        ("losses", {"loss": 0.50001}, {"loss": 0.501}),
        ("statistics", {"count": 8.0001}, {"count": 8.01}),
        ("weights", {"weight": 1.0001}, {"weight": 1.01}),
        ("losses", {}, {"loss": float("nan")}),
    ],
)
def test_two_processes_that_differ(trained, name, near, far):
    one = trained("one")
    processes.check(processes.differences(one, trained("near", **near)))
    with pytest.raises(Failed, match=f"difference of {name} between one process and two"):
        processes.check(processes.differences(one, trained("far", **far)))


# ---- fuzz ----

FUZZ = """
from hypothesis import given, settings, strategies as st

settings.register_profile("prove", max_examples=30, database=None)

@given(st.integers())
def test_numbers(n):
    {body}
"""


@pytest.mark.parametrize(
    "body, cases, message",
    [
        ("pass", 30, None),
        ("pass", 31, "{'test_numbers': 30} was tried, expected at least 31"),
        ("assert n < 10", 30, "exit code 1 of pytest.*test_numbers"),
        ("bytearray(2**33)", 30, "exit code 1 of pytest.*test_numbers"),  # more than the address space
    ],
)
def test_a_fuzz_that_finds_something(tmp_path, body, cases, message):
    (tmp_path / "conftest.py").write_text(FUZZ.partition("@given")[0])
    tests = tmp_path / "test_numbers.py"
    tests.write_text(FUZZ.format(body=body))
    if message is None:
        assert run_fuzz(tests, 0, tmp_path / "console.txt", cases) == {"test_numbers": cases}
        return
    with pytest.raises(Failed, match=message):
        run_fuzz(tests, 0, tmp_path / "console.txt", cases)
