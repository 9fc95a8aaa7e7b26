"""SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2: save a checkpoint after the iteration, say how to go on, and exit.

The exit code is 128 + the signal's number. Schedulers warn by SIGUSR1 or SIGUSR2 (Slurm: ``--signal=USR1@120``), and a
terminal that is closed sends SIGHUP, which stays ignored under nohup.

Data that cannot be read: save a checkpoint of the iteration before.

Outside an iteration (start-up, evaluation) a signal ends the process at once: a checkpoint then holds all there is.
"""

import logging
import multiprocessing
import os
import shlex
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress

import torch
import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm

from eql_d2.data.train_loader import STOP_SIGNALS
from eql_d2.engine.train_step import DataError

logger = logging.getLogger(__name__)

# A launcher passes on the signal that its processes have had from the terminal as well: that is no second one.
LAUNCHER_SECONDS = 2.0


class Interrupted(SystemExit):
    """Ends the process with the exit code of a signal, 128 + its number."""

    def __init__(self, signum: int):
        super().__init__(128 + signum)
        self.signal_name = signal.Signals(signum).name


class SignalReceiver:
    """What this process has received; there is one, as there is one handler of a signal in a process."""

    def __init__(self):
        self.listening = False
        self.deferred = False  # whether training will look, or the process ends at once
        self.signum: int | None = None
        self.since = 0.0
        self.pid = 0

    def receive(self, signum: int, frame) -> None:
        """The handler. It must not write through Python's buffers, which it may have interrupted."""
        if os.getpid() != self.pid:
            return  # a forked worker: its parent decides
        name = signal.Signals(signum).name
        if self.signum is not None:
            if comm.get_world_size() > 1 and time.monotonic() - self.since < LAUNCHER_SECONDS:
                return
            say(f"{name} again: ending at once")
            os._exit(128 + signum)
        self.signum, self.since = signum, time.monotonic()
        if not self.deferred:
            raise Interrupted(signum)
        say(f"{name}: stopping after this iteration; a second signal ends at once")


def say(line: str) -> None:
    """Without Python's buffers, and not at all to a terminal that is gone."""
    with suppress(OSError):
        os.write(2, f"{line}\n".encode())


RECEIVER = SignalReceiver()


@contextmanager
def listening():
    """Within this context signals raise :class:`Interrupted`, or wait where :func:`deferred` says so.

    Contexts nest. Python lets only the main thread set handlers: elsewhere nothing is changed.
    """
    if RECEIVER.listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    RECEIVER.listening, RECEIVER.signum, RECEIVER.pid = True, None, os.getpid()
    try:
        with handled_by(RECEIVER.receive):
            yield
    finally:
        RECEIVER.listening, RECEIVER.signum = False, None


@contextmanager
def handled_by(handler):
    """Within this context ``handler`` gets the signals, but for a SIGHUP that nohup has had ignored."""
    heard = [s for s in STOP_SIGNALS if s.name != "SIGHUP" or signal.getsignal(s) is not signal.SIG_IGN]
    before = {signum: signal.signal(signum, handler) for signum in heard}
    try:
        yield
    finally:
        for signum, earlier in before.items():
            signal.signal(signum, earlier)


@contextmanager
def deferred(value: bool = True):
    """Within this context a signal waits until it is asked for; with False, inside such a context, it does not."""
    outside, RECEIVER.deferred = RECEIVER.deferred, value
    try:
        if not value and RECEIVER.signum is not None:
            raise Interrupted(RECEIVER.signum)
        yield
    finally:
        RECEIVER.deferred = outside


def interruptible():
    """A context for evaluation, and whatever else is long and changes nothing: a signal ends it at once."""
    return deferred(False)


@contextmanager
def passing_on_signals():
    """For a process that only starts others and waits: within this context they are sent what it receives."""

    def pass_on(signum, _frame):
        children = [child.pid for child in multiprocessing.active_children() if child.pid]
        if not children:
            raise Interrupted(signum)
        for child in children:
            os.kill(child, signum)

    with handled_by(pass_on):
        yield


class Interruption(HookBase):
    """Stops training after an iteration in which any process received a signal; place it behind the checkpointer.

    Whether it is stopped by that or by a :class:`DataError`, the last finished iteration is saved.
    """

    def __init__(self, checkpointer):
        self.checkpointer = checkpointer
        self.finished: int | None = None  # the last iteration that was
        self.agreed = False
        self._group = None

    def before_train(self):
        if comm.get_world_size() > 1 and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo")  # for numbers on the CPU: no wait for the GPU

    def after_step(self):
        self.finished = self.trainer.iter
        signum = self._any_process(RECEIVER.signum)
        if signum:
            RECEIVER.signum, self.agreed = signum, True
            if self.trainer.iter + 1 < self.trainer.max_iter:  # else all that is left is evaluation
                raise Interrupted(signum)

    def _any_process(self, signum: int | None) -> int:
        """The signal that this or another process received, or 0; the same in all of them."""
        if comm.get_world_size() == 1:
            return signum or 0
        number = torch.tensor(signum or 0)
        dist.all_reduce(number, op=dist.ReduceOp.MAX, group=self._group)
        return int(number)

    @contextmanager
    def handled(self):
        """The context to train in: it saves what was interrupted, and says where."""
        with listening(), deferred():
            try:
                yield
            except Interrupted as stop:
                self._stop(stop.signal_name, together=self.agreed)
                raise
            except DataError:
                self._stop("data that cannot be read", together=True)
                raise

    @contextmanager
    def saved_if_it_fails(self):
        """For an evaluation in training: before its error goes on, what was trained is saved."""
        try:
            yield
        except Exception:
            self._stop("an evaluation that failed", together=False)
            raise

    def _stop(self, reason: str, together: bool) -> None:
        self._save()
        if together:
            comm.synchronize()  # when a process ends, launchers end the others: not before all is saved
        logger.warning("stopped by %s %s", reason, self._where())

    def _save(self) -> None:
        """Save the last finished iteration, if it is not yet; the trainer may be in the next."""
        if self.finished is None or self.checkpointer.saved_iteration == self.finished:
            return
        self.trainer.iter = self.finished
        self.checkpointer.save(f"model_{self.finished:07d}", iteration=self.finished)

    def _where(self) -> str:
        when = "before an iteration was done" if self.finished is None else f"after iteration {self.finished}"
        if not self.checkpointer.has_checkpoint():
            return f"{when}; there is no checkpoint"
        return f"{when}; checkpoint: {self.checkpointer.get_checkpoint_file()}"


@contextmanager
def resumable_tool(args):
    """For the main function of a tool: signals are handled, and the last line says how to go on."""
    try:
        with listening():
            yield
    except Interrupted as stop:
        how = "run the same command again" if args.eval_only else "run the same command with --resume"
        logger.warning("%s: exit code %d. To go on, %s: %s", stop.signal_name, stop.code, how, resume_command(args))
        raise


def resume_command(args) -> str:
    """This process's command line, with ``--resume`` if it trains; of torchrun, only what it starts is known."""
    script, *rest = sys.argv
    program = [script]
    if rest[:1] == ["train"]:  # of `eql-d2`, which every Python that has the package can run
        program, rest = ["-m", "eql_d2", "train"], rest[1:]
    if not (args.resume or args.eval_only):
        rest.insert(0, "--resume")  # not at the end, where it would be taken for a config key
    launcher = ["torchrun", "..."] if "TORCHELASTIC_RUN_ID" in os.environ else [sys.executable]
    return shlex.join([*launcher, *program, *rest])
