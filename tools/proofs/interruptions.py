"""Proofs that a run may be interrupted: each takes a :class:`Workshop`, returns what was seen, or raises Failed."""

import os
import random
import re
import resource
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from proofs.runs import PERIOD, Failed, Run, check_equal
from tqdm import tqdm


@dataclass
class Workshop:
    """Where the proofs work.

    Args:
        folder: of all runs.
        kills: how many times to kill.
        seed: of the moments.
        record: stores what a proof has seen so far, under its name.
        records: what was stored, by an earlier process perhaps.
    """

    folder: Path
    kills: int
    seed: int
    record: Callable[[str, list[dict]], None]
    records: dict[str, list[dict]]

    @property
    def max_iter(self) -> int:
        return max(24, 9 * self.kills)

    def run(self, name: str, *options: str) -> Run:
        return Run(self.folder / name, self.folder / "data", self.max_iter, *options)

    def reference(self) -> Run:
        """The run that nothing interrupts, made once."""
        run = self.run("reference")
        if not (run.folder / "summary.txt").exists():
            shutil.rmtree(run.folder)
            run = self.run("reference")
            run.start(resume=False)
            run.finish()
            (run.folder / "summary.txt").write_text(run.output()[-2000:])
        return run

    def seconds_per_iteration(self) -> float:
        lines = (self.folder / "reference" / "metrics.json").read_text()
        return float(re.findall(r'"time": ([\d.]+)', lines)[-1])


def kill(workshop: Workshop) -> dict:
    """kill -9 at random moments: no more than one checkpoint period is lost, the end is the same."""
    reference, seen = workshop.reference(), list(workshop.records.get("kill", []))
    number = seen[-1]["run"] if seen else 0
    run = workshop.run(f"kill_{number}")
    with tqdm(total=workshop.kills, initial=len(seen), desc="kill -9", unit="kill") as bar:
        while len(seen) < workshop.kills:
            killed = kill_once(run, random.Random(f"{workshop.seed} {len(seen)}"), workshop, len(seen))
            if run.done:  # the moment came too late: this run has ended, another begins
                number += 1
                run = workshop.run(f"kill_{number}")
            else:
                seen.append({"run": number, **killed})
                workshop.record("kill", seen)
                bar.update()
    before = run.last_finished(), run.checkpoint_iteration()
    run.start()
    run.finish()
    losses = [check_start(run, before), *(k["lost_before"] for k in seen)]
    compared = [check_equal(workshop.run(f"kill_{i}"), reference) for i in range(number + 1)]
    if any(run.folder.glob("*.tmp")):
        raise Failed(f"unfinished files are left in {run.folder}")
    return {
        "what": f"{len(seen)} kills (-9) at random moments, of {len(compared)} run(s) of {run.max_iter} iterations",
        "seen": f"most iterations lost {max(losses)} (a checkpoint every {PERIOD}), mean "
        f"{sum(losses) / len(seen):.1f}; {sum(k['unfinished_file'] for k in seen)} kills while a file was written, "
        f"{sum(k['moment'] == 'evaluation' for k in seen)} in evaluation; final checkpoint ({compared[0]} numbers) and "
        f"metrics equal the uninterrupted run's",
    }


def kill_once(run: Run, rng: random.Random, workshop: Workshop, kills_before: int) -> dict:
    """Go on with a run, with or without worker processes, and kill it at a random moment."""
    before = run.last_finished(), run.checkpoint_iteration()
    workers = rng.choice([0, 2])
    run.start("DATALOADER.NUM_WORKERS", str(workers))
    moment = wait_for_a_moment(run, rng, workshop, left=workshop.kills - kills_before)
    run.kill(signal.SIGKILL)
    return {
        "moment": moment,
        "workers": workers,
        "unfinished_file": any(run.folder.glob("*.tmp")),
        "iteration": run.last_finished(),
        "checkpoint": run.last_checkpoint(),
        "lost_before": check_start(run, before),
    }


def wait_for_a_moment(run: Run, rng: random.Random, workshop: Workshop, left: int) -> str:
    """Wait for a random moment of a random kind; returns the kind."""
    kind = rng.choices(["training", "writing a checkpoint", "evaluation", "start-up"], [10, 6, 2, 2])[0]
    if kind == "start-up":
        time.sleep(rng.uniform(0, 4))
        return kind
    if not run.wait_until_it_trains():
        return kind
    remaining = max(0, run.max_iter - 1 - run.checkpoint_iteration()) * workshop.seconds_per_iteration()
    delay = rng.uniform(0, 2 * remaining / (left + 1))
    if kind == "evaluation" and run.wait_until(lambda: "Start inference" in run.output()):
        delay = rng.uniform(0, 0.1)
    until = time.monotonic() + delay
    run.wait_until(lambda: time.monotonic() > until, poll=0.005)
    if kind == "writing a checkpoint":
        run.wait_until(lambda: any(run.folder.glob("*.tmp")), poll=0.0005)
    return kind


def check_start(run: Run, before) -> int:
    """The process must have started behind the last checkpoint; returns the iterations that were lost before it."""
    finished, checkpoint = before
    if "Starting training" not in run.output():
        return 0  # killed before: the next one will tell
    started = run.started_from()
    if started != checkpoint + 1:
        raise Failed(f"started from iteration {started}, but the last checkpoint is of {checkpoint}: {run.console}")
    lost = finished + 1 - started
    if lost > PERIOD:
        raise Failed(f"{lost} iterations lost, with a checkpoint every {PERIOD}: {run.console}")
    return max(lost, 0)


def signals(workshop: Workshop) -> dict:
    """SIGTERM and SIGINT, to all processes of the run: nothing is lost, exit code, the command that goes on."""
    reference, rng = workshop.reference(), random.Random(workshop.seed)
    shutil.rmtree(workshop.folder / "signals", ignore_errors=True)
    run = workshop.run("signals")
    run.start(resume=False)
    plan = [(signum, "training") for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM)]
    plan += [(signal.SIGTERM, "evaluation"), (signal.SIGINT, "start-up")]
    for signum, moment in tqdm(plan, desc="signals", unit="signal"):
        if moment == "start-up":
            run.wait_until(lambda: "Command line arguments" in run.output())
        else:
            run.wait_until_it_trains()
        if moment == "training":
            time.sleep(rng.uniform(0, run.max_iter / len(plan) / 2 * workshop.seconds_per_iteration()))
        if moment == "evaluation":
            run.wait_until(lambda: "Start inference" in run.output())
        command = stop(run, signum, moment)
        run.start_command(run.counted(command[2:]))
    run.kill(signal.SIGTERM)
    run.start_command(command)  # as it was printed
    run.finish()
    numbers = check_equal(run, reference)
    code = stop_twice(workshop)
    return {
        "what": f"{len(plan)} signals, SIGTERM and SIGINT, while training, evaluating and starting up; a double one",
        "seen": f"0 iterations lost; exit codes 143 and 130; the printed command went on each time; a second signal "
        f"ended the process at once ({code}); final checkpoint ({numbers} numbers) and metrics equal the "
        f"uninterrupted run's",
    }


def stop(run: Run, signum: int, moment: str) -> list[str]:
    """Send a signal; returns the command that the run says to go on by."""
    code, expected = run.kill(signum), 128 + signum
    if code != expected:
        raise Failed(f"exit code {code} after {signal.Signals(signum).name} in {moment}, expected {expected}")
    if moment != "start-up":
        check_nothing_is_lost(run)
    command = re.findall(r"run the same command with --resume: (.*)", run.output())
    if not command or Path(shlex.split(command[-1])[1]).name != "train_net.py":
        raise Failed(f"no command to go on by in {run.console}")
    return shlex.split(command[-1])


def check_nothing_is_lost(run: Run) -> None:
    if run.checkpoint_iteration() != run.last_finished():
        raise Failed(f"the checkpoint is of iteration {run.checkpoint_iteration()}, but {run.last_finished()} was done")


def check_one_error(run: Run, named: str) -> None:
    """The process must have ended with exit code 1 and one line that names what it should."""
    code, errors = run.process.returncode, run.errors()
    if code != 1 or len(errors) != 1 or named not in errors[0]:
        raise Failed(f"exit code {code}, errors {errors}, expected 1 and one that names {named}, see {run.console}")


def stop_twice(workshop: Workshop) -> int:
    """SIGTERM two times, the second before the iteration ends; returns the exit code."""
    run = workshop.run("twice")
    run.start(resume=False)
    run.wait_until_it_trains()
    run.process.send_signal(signal.SIGTERM)
    while run.process.poll() is None:
        run.process.send_signal(signal.SIGTERM)
        time.sleep(0.001)
    if run.process.returncode not in (143, -signal.SIGTERM):
        raise Failed(f"exit code {run.process.returncode} after two SIGTERM")
    return run.process.returncode


def full_disk(workshop: Workshop) -> dict:
    """A file-size limit below a checkpoint's size, as a full disk: one error, the last good checkpoint stays."""
    reference = workshop.reference()
    shutil.rmtree(workshop.folder / "full_disk", ignore_errors=True)
    run = workshop.run("full_disk")
    run.start(resume=False)
    run.wait_until(lambda: run.last_checkpoint() is not None)
    run.kill(signal.SIGKILL)
    good = run.last_checkpoint()
    limit = 2**20
    run.start(preexec=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    run.wait_until(lambda: False)
    check_one_error(run, good)
    if run.last_checkpoint() != good or any(run.folder.glob("*.tmp")):
        raise Failed(f"last_checkpoint is {run.last_checkpoint()}, expected {good}, or there are unfinished files")
    return {
        "what": "a checkpoint that does not fit (RLIMIT_FSIZE)",
        "seen": f"exit code 1 and one error; the last good checkpoint stayed; resumed with room, the "
        f"{resumed_equals(run, reference)}",
    }


def lost_data(workshop: Workshop) -> dict:
    """The folder of the images is gone in the middle of training, then a data worker is killed: nothing is lost."""
    reference, rng = workshop.reference(), random.Random(workshop.seed)
    folder = workshop.folder / "lost_data"
    shutil.rmtree(folder, ignore_errors=True)
    run = Run(folder / "run", folder / "data", workshop.max_iter)
    images, elsewhere = folder / "data" / "train", folder / "data" / "elsewhere"

    run.start(resume=False)
    wait_for_iteration(run, rng.randrange(1, workshop.max_iter // 2))
    images.rename(elsewhere)
    run.wait_until(lambda: False)
    elsewhere.rename(images)
    check_one_error(run, str(images))
    check_nothing_is_lost(run)

    run.start()
    wait_for_iteration(run, rng.randrange(workshop.max_iter // 2, workshop.max_iter - 5))
    worker = run.children()[-1]
    os.kill(worker, signal.SIGKILL)
    run.wait_until(lambda: False)
    check_one_error(run, f"{worker}")
    check_nothing_is_lost(run)

    return {
        "what": "the folder of the images gone in the middle of training; a data worker killed (-9)",
        "seen": f"exit code 1 and one error that names the image, or the worker; 0 iterations lost; "
        f"{resumed_equals(run, reference)}",
    }


def resumed_equals(run: Run, reference: Run) -> str:
    """Resume a run to its end, which must equal the uninterrupted one's; what was compared, in words."""
    run.start()
    run.finish()
    numbers = check_equal(run, reference)
    return f"final checkpoint ({numbers} numbers) and metrics equal the uninterrupted run's"


def wait_for_iteration(run: Run, iteration: int) -> None:
    if not run.wait_until(lambda: run.last_finished() >= iteration):
        raise Failed(f"the run ended before iteration {iteration}: {run.console}")
