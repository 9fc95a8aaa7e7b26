"""Signals: what a process does with a first and a second, the printed command, agreement between processes."""

import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from argparse import Namespace
from pathlib import Path

import pytest
from detectron2.utils import comm

from eql_d2.engine.interruption import (
    LAUNCHER_SECONDS,
    RECEIVER,
    Interrupted,
    deferred,
    interruptible,
    listening,
    passing_on_signals,
    resumable_tool,
    resume_command,
)

ROOT = Path(__file__).parents[2]


def send(signum):
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum, code", [(15, 143), (2, 130), (1, 129), (10, 138), (12, 140)])
def test_a_signal_ends_the_process_with_the_conventional_code(signum, code):
    outside = signal.signal(signum, signal.default_int_handler)  # also where the tests run under nohup
    try:
        with pytest.raises(SystemExit) as stop, listening():
            send(signum)
        assert stop.value.code == code and isinstance(stop.value, Interrupted)
        assert signal.getsignal(signum) is signal.default_int_handler
    finally:
        signal.signal(signum, outside)


def test_under_nohup_a_closed_terminal_is_no_reason_to_stop():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening(), passing_on_signals():
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_deferred_signal_waits_for_who_may_be_interrupted():
    reached = []
    with pytest.raises(Interrupted), listening(), deferred():
        send(signal.SIGTERM)
        reached.append("after the signal")
        with interruptible():
            reached.append("not this")
    assert reached == ["after the signal"] and not RECEIVER.deferred
    with pytest.raises(Interrupted), listening(), deferred(), interruptible():
        send(signal.SIGTERM)


def code_of_a_process(function):
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_second_signal_ends_at_once():
    def twice():
        with listening(), deferred():
            send(signal.SIGTERM)
            send(signal.SIGINT)

    assert code_of_a_process(twice) == 130


def test_a_launcher_that_passes_a_signal_on_is_no_second_one(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)

    def soon_and_later():
        with listening(), deferred():
            send(signal.SIGTERM)
            send(signal.SIGTERM)
            RECEIVER.since = time.monotonic() - LAUNCHER_SECONDS
            send(signal.SIGINT)

    assert code_of_a_process(soon_and_later) == 130


def test_a_launcher_passes_signals_on():
    def wait_for_a_child():
        with passing_on_signals():
            fork = multiprocessing.get_context("fork")
            ready = fork.Event()
            child = fork.Process(target=hang, args=(ready,))
            child.start()
            ready.wait(60)
            send(signal.SIGTERM)
            child.join()
            os._exit(-child.exitcode)

    def hang(ready):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ready.set()
        time.sleep(60)

    assert code_of_a_process(wait_for_a_child) == signal.SIGTERM
    with pytest.raises(Interrupted), passing_on_signals():
        send(signal.SIGTERM)  # there is nobody to pass it on to


def test_a_forked_process_leaves_signals_to_its_parent():
    with listening():
        assert code_of_a_process(lambda: send(signal.SIGTERM)) == 0


def test_other_threads_set_no_handlers():
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def look():
        with listening():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize(
    "resume, eval_only, extra", [(False, False, ["--resume"]), (True, False, []), (False, True, [])]
)
def test_the_command_to_go_on_by(monkeypatch, caplog, resume, eval_only, extra):
    given = ["--resume"] if resume else []
    monkeypatch.setattr(sys, "argv", ["tools/train_net.py", *given, "OUTPUT_DIR", "a folder"])
    args = Namespace(resume=resume, eval_only=eval_only)
    words = shlex.split(resume_command(args))
    assert words == [sys.executable, "tools/train_net.py", *given, *extra, "OUTPUT_DIR", "a folder"]
    with pytest.raises(Interrupted), resumable_tool(args):
        send(signal.SIGTERM)
    assert caplog.text.rstrip().endswith("OUTPUT_DIR 'a folder'")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert resume_command(args).startswith("torchrun ... tools/train_net.py")


@pytest.mark.parametrize("script", ["/venv/bin/eql-d2", "/venv/eql_d2/__main__.py"])
def test_the_command_to_go_on_by_is_that_of_the_package(monkeypatch, script):
    monkeypatch.setattr(sys, "argv", [script, "train", "--config-file", "a.yaml", "OUTPUT_DIR", "o"])
    words = shlex.split(resume_command(Namespace(resume=False, eval_only=False)))
    assert words == [sys.executable, "-m", "eql_d2", "train", "--resume", *sys.argv[2:]]


PROCESSES = """
import os, signal, sys
from pathlib import Path
import torch
from detectron2.engine import TrainerBase, launch
from detectron2.utils import comm
from eql_d2.engine import Interrupted, LongTailCheckpointer
from eql_d2.engine.interruption import Interruption

class Trainer(TrainerBase):
    def run_step(self):
        if comm.get_rank() == 1 and self.iter == 3:
            os.kill(os.getpid(), signal.SIGTERM)

def main(folder):
    trainer = Trainer()
    checkpointer = LongTailCheckpointer(torch.nn.Linear(2, 2), folder, trainer=trainer)
    interruption = Interruption(checkpointer)
    trainer.register_hooks([interruption])
    try:
        with interruption.handled():
            trainer.train(0, 1000)
    except Interrupted as stop:
        (Path(folder) / f"{comm.get_rank()}.txt").write_text(f"{stop.code} after {interruption.finished}")

if __name__ == "__main__":
    launch(main, 2, dist_url="auto", args=(sys.argv[1],))
"""


def test_processes_agree_where_one_has_the_signal(tmp_path):
    script = tmp_path / "processes.py"
    script.write_text(PROCESSES)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, script, tmp_path], env=env, check=True, timeout=300)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["143 after 3"] * 2
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"
