"""Runs of tools/train_net.py in processes of their own: start, watch, kill, compare."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from eql_d2.mini_lvis.generator import MiniLVISSpec, ensure

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "MiniLVIS" / "eql_faster_rcnn.yaml")
SPEC = MiniLVISSpec(num_categories=7, num_train_images=30, num_val_images=4, max_image_count=20, min_val_images=1)
PERIOD = 5  # iterations between checkpoints
TIMEOUT = 600  # seconds for anything here


class Run:
    """One training in one folder, over as many processes as it takes.

    Args:
        folder: of the run; each process adds to `console.txt` in it.
        data: folder of the small MiniLVIS to train on, made if it is not there.
        options: config keys and values besides.
    """

    def __init__(self, folder: Path, data: Path, max_iter: int, options: dict | None = None):
        self.folder, self.max_iter = folder, max_iter
        folder.mkdir(parents=True, exist_ok=True)
        self.console, self.counter = folder / "console.txt", folder / "iteration.txt"
        self.process: subprocess.Popen | None = None
        self._start_of_output = 0
        ensure(SPEC, data)
        register = [[f"slow_{s}", str(data / f"mini_lvis_{s}.json"), str(data)] for s in ("train", "val")]
        settings = {
            "DATASETS.REGISTER": register,
            "DATASETS.TRAIN": ("slow_train",),
            "DATASETS.TEST": ("slow_val",),
            "DATALOADER.NUM_WORKERS": 2,
            "INPUT.MIN_SIZE_TRAIN": (64, 80, 96),
            "INPUT.MIN_SIZE_TEST": 64,
            "INPUT.RANDOM_FLIP": "horizontal",
            "MODEL.DEVICE": "cpu",
            "MODEL.WEIGHTS": "",
            "MODEL.ROI_HEADS.NUM_CLASSES": SPEC.num_categories,
            "SOLVER.IMS_PER_BATCH": 2,
            "SOLVER.MAX_ITER": max_iter,
            "SOLVER.CHECKPOINT_PERIOD": PERIOD,
            "SOLVER.WARMUP_ITERS": 10,
            "TEST.EVAL_PERIOD": max_iter // 3,
            "OUTPUT_DIR": folder,
            **(options or {}),
        }
        self.options = [str(word) for setting in settings.items() for word in setting]

    def start(self, *options: str, resume: bool = True, preexec: Callable | None = None) -> None:
        """Start the tool, in a process group of its own."""
        arguments = ["--config-file", CONFIG, *self.options, *options]
        self.start_command(self.counted(["--resume", *arguments] if resume else arguments), preexec)

    def counted(self, arguments: list[str]) -> list[str]:
        """The command of tools/train_net.py with these arguments, and a count of its iterations."""
        return [sys.executable, str(Path(__file__).parent / "counted_train_net.py"), str(self.counter), *arguments]

    def start_command(self, command: list[str], preexec: Callable | None = None) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        with open(self.console, "ab") as console:
            self._start_of_output = console.tell()
            self.process = subprocess.Popen(
                command,
                stdout=console,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
                preexec_fn=preexec,
                cwd=ROOT,
            )

    def output(self) -> str:
        """What the present process has printed, without colours."""
        with open(self.console, "rb") as console:
            console.seek(self._start_of_output)
            return re.sub(r"\x1b\[\d+m", "", console.read().decode(errors="replace"))

    def wait_until(self, condition: Callable[[], bool], poll: float = 0.02) -> bool:
        """Wait for a condition; False if the process ended first."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > deadline:
                self.kill(signal.SIGKILL)
                raise AssertionError(f"nothing happened for {TIMEOUT} s, see {self.console}")
            time.sleep(poll)
        return True

    def wait_until_it_trains(self) -> bool:
        return self.wait_until(lambda: "Starting training from iteration" in self.output())

    def wait_for_iteration(self, iteration: int) -> None:
        assert self.wait_until(lambda: self.last_finished() >= iteration), f"ended before {iteration}: {self.console}"

    def kill(self, signum: int) -> int:
        """Send a signal to all processes of the run; the exit code of the first, negative where a signal ended it."""
        try:
            os.killpg(self.process.pid, signum)
        except ProcessLookupError:
            pass
        return self.process.wait(TIMEOUT)

    def children(self) -> list[int]:
        """The processes that the first one has started: workers of the data loader. (Linux only.)"""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def wait_for_its_end(self) -> int:
        self.wait_until(lambda: False, poll=0.1)
        return self.process.returncode

    def finish(self) -> None:
        """Wait until the process has ended well."""
        assert self.wait_for_its_end() == 0, f"see {self.console}:\n{self.output()[-2000:]}"

    @property
    def done(self) -> bool:
        return (self.folder / "model_final.pth").exists() and self.process.poll() == 0

    def unfinished_files(self) -> list[Path]:
        return list(self.folder.glob("*.tmp"))

    def last_finished(self) -> int:
        """The last iteration that was finished by any process, -1 if none."""
        return int((self.counter.read_text() if self.counter.exists() else "") or -1)

    def last_checkpoint(self) -> str | None:
        path = self.folder / "last_checkpoint"
        return path.read_text() if path.exists() else None

    def checkpoint_iteration(self) -> int:
        """The iteration of the last checkpoint, -1 if there is none."""
        name = self.last_checkpoint()
        if name is None:
            return -1
        return self.max_iter - 1 if name == "model_final.pth" else int(re.search(r"\d{7}", name).group())

    def started_from(self) -> int | None:
        match = re.search(r"Starting training from iteration (\d+)", self.output())
        return int(match.group(1)) if match else None

    def errors(self) -> list[str]:
        """The lines in which the present process says what went wrong."""
        return [line for line in self.output().splitlines() if line.startswith("error: ")]

    def metrics(self) -> list[dict]:
        """The lines of metrics.json without clocks; NaN as a string, since it equals nothing.

        The first iterations of a process are not timed, so that a line may hold a clock alone, of an iteration before.
        """
        lines = (self.folder / "metrics.json").read_text().splitlines()
        parsed = [json.loads(line, parse_constant=str) for line in lines]
        timeless = [{k: v for k, v in line.items() if not is_time(k)} for line in parsed]
        return [line for line in timeless if line.keys() != {"iteration"}]


def is_time(name) -> bool:
    """Whether a metric is a clock's, which no two runs share."""
    return "time" in str(name) or name == "eta_seconds"


def assert_same_end(run: Run, reference: Run) -> int:
    """Final checkpoints and metrics are equal to the last bit; returns how many numbers were compared."""
    final = [torch.load(r.folder / "model_final.pth", weights_only=True) for r in (run, reference)]
    count = assert_equal(*final)
    assert run.metrics() == reference.metrics()
    return count


def assert_equal(a, b, path: str = "") -> int:
    """Two checkpoints, or parts of them, hold the same numbers but for clocks; returns how many."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
        return a.numel()
    if isinstance(a, dict):
        keys = [key for key in a if not is_time(key)]
        assert keys == [key for key in b if not is_time(key)], path
        return sum(assert_equal(a[key], b[key], f"{path}.{key}") for key in keys)
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        return sum(assert_equal(x, y, f"{path}[{i}]") for i, (x, y) in enumerate(zip(a, b)))
    assert a == b or (a != a and b != b), path
    return 1
