"""`python speed/gpu.py`, as far as a machine without a GPU can tell."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

COMMAND = [sys.executable, str(Path(__file__).parent.parent / "speed" / "gpu.py")]


def run(folder, *arguments) -> tuple[subprocess.CompletedProcess, dict]:
    output = folder / "gpu.json"
    command = [*COMMAND, "--device", "cpu", "--quick", "--output", str(output), "--sections", *arguments]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=folder)
    return result, json.loads(output.read_text())


def test_sections_run_on_a_cpu(tmp_path):
    result, report = run(tmp_path, "inference")
    assert result.returncode == 0 and "gpu.json" in result.stdout.splitlines()[-1]
    assert report["torch"] == torch.__version__
    rows = report["sections"]["inference"]
    assert len(rows) == 4 and all(row["equal"] and row["eql_d2 ms"] > 0 for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_is_said(tmp_path):
    result = subprocess.run(COMMAND, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert result.returncode and result.stderr.splitlines()[-1].startswith("error: torch sees no CUDA device")


@pytest.mark.slow
def test_every_section_has_a_row_for_everything(tmp_path):
    """What a CPU cannot run is said, and nothing is wrong."""
    result, report = run(tmp_path, "sync", "losses", "inference", "masks", "training", "nccl")
    assert result.returncode == 0, result.stdout
    sections = report["sections"]
    assert [row["status"] for row in sections["sync"]] == ["not run: it needs a CUDA device"] * len(sections["nccl"])
    assert {row["precision"]: row["status"][:5] for row in sections["training"]} == {
        "fp32": "ok",
        "bf16": "ok",
        "fp16": "error",
    }
    assert all(row["equal"] for name in ("inference", "masks", "nccl") for row in sections[name])
    assert all(row["status"] == "ok" and not row.get("wrong") for row in sections["losses"])
