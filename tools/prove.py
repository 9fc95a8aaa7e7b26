#!/usr/bin/env python
"""Prove by experiment what docs/reliability.md says: interrupt short trainings, divide them, and feed in broken files.

    python tools/prove.py
    python tools/prove.py --only kill --kills 100 --output output/proofs_100

The results are written to proofs.json in the output folder as they come, and a table of them to reliability.md. Started
again with the same folder, it goes on where it stopped; a proof that has passed is not repeated.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import detectron2
import torch
from proofs.fuzz import fuzz
from proofs.interruptions import Workshop, full_disk, kill, lost_data, signals
from proofs.processes import processes
from proofs.runs import ROOT, Failed
from tabulate import tabulate

# Name -> a function of a Workshop that returns {"what": ..., "seen": ...}, or raises Failed. Its docstring is shown.
PROOFS = {
    "kill": kill,
    "signals": signals,
    "full_disk": full_disk,
    "lost_data": lost_data,
    "processes": processes,
    "fuzz": fuzz,
}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many times to kill -9 (default: 20)")
    parser.add_argument("--only", nargs="+", choices=list(PROOFS), default=list(PROOFS), help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="of moments, trainings and cases (default: 0)")
    parser.add_argument("--output", type=Path, default=Path("output/proofs"), help="default: output/proofs")
    args = parser.parse_args()
    if args.kills < 1:
        parser.error("--kills must be at least 1")
    return args


class Results:
    """proofs.json: the settings, what the proofs have seen so far, and how they ended."""

    def __init__(self, path: Path, settings: dict):
        self.path = path
        self.content = json.loads(path.read_text()) if path.exists() else {}
        if self.content.get("settings", settings) != settings:
            sys.exit(f"error: {path} is of other settings ({self.content['settings']}): give another --output")
        self.content = {"settings": settings, "records": {}, "proofs": {}, **self.content}

    def record(self, name: str, seen: list) -> None:
        self.content["records"][name] = seen
        self.save()

    def save(self) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.content, indent=1))
        temporary.replace(self.path)


def prove(name: str, results: Results, workshop: Workshop) -> bool:
    """Run one proof, unless it has passed, and keep the result."""
    proofs, start = results.content["proofs"], time.monotonic()
    if proofs.get(name, {}).get("passed"):
        print(f"{name}: passed before")
        return True
    print(f"{name}: {PROOFS[name].__doc__}", flush=True)
    try:
        result = {"passed": True, **PROOFS[name](workshop)}
    except Failed as failure:
        result = {"passed": False, "what": name, "seen": str(failure)}
    proofs[name] = {**result, "seconds": round(time.monotonic() - start)}
    results.save()
    print(f"{name}: {'passed' if result['passed'] else 'FAILED'}: {result['seen']}", flush=True)
    return result["passed"]


def commit() -> str:
    """The commit of this code, with "-dirty" where it is changed."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


def report(results: Results) -> str:
    """In markdown: the settings, and a table of what was done and seen."""
    rows = [
        (p["what"], "holds" if p["passed"] else "FAILS", p["seen"], f"{p['seconds']} s")
        for p in results.content["proofs"].values()
    ]
    settings = ", ".join(f"{name} {value}" for name, value in results.content["settings"].items())
    return f"{settings}\n\n" + tabulate(rows, headers=("what was done", "result", "seen", "time"), tablefmt="pipe")


def main():
    args = parse_arguments()
    args.output.mkdir(parents=True, exist_ok=True)
    output = args.output.absolute()
    settings = {
        "kills": args.kills,
        "seed": args.seed,
        "commit": commit(),
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
        "python": platform.python_version(),
    }
    results = Results(output / "proofs.json", settings)
    workshop = Workshop(output, args.kills, args.seed, results.record, results.content["records"])
    passed = [prove(name, results, workshop) for name in args.only]
    (output / "reliability.md").write_text(report(results) + "\n")
    print(f"\n{report(results)}\n\n{sum(passed)} of {len(passed)} proofs hold")
    print(f"results: {results.path}\ntable: {output / 'reliability.md'}")
    sys.exit(0 if all(passed) else 1)


if __name__ == "__main__":
    main()
