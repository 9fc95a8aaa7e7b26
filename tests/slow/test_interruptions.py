"""What docs/reliability.md promises of a training that is killed, stopped, or starved of disk and images.

Each run must end with the checkpoint and the metrics of one that nothing interrupts, to the last bit.

    make prove                 # 20 kills
    make prove KILLS=100
"""

import os
import random
import re
import resource
import shlex
import signal
import time
from pathlib import Path

import pytest

from tests.slow.runs import PERIOD, Run, assert_same_end

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS", 20))
MAX_ITER = max(24, 9 * KILLS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("interruptions")


@pytest.fixture(scope="module")
def make_run(folder):
    return lambda name: Run(folder / name, folder / "data", MAX_ITER)


@pytest.fixture(scope="module")
def reference(make_run):
    """The run that nothing interrupts."""
    run = make_run("reference")
    run.start(resume=False)
    run.finish()
    return run


@pytest.fixture(scope="module")
def seconds_per_iteration(reference):
    return float(re.findall(r'"time": ([\d.]+)', (reference.folder / "metrics.json").read_text())[-1])


def test_kill_9_at_random_moments(make_run, reference, seconds_per_iteration):
    """No more than one checkpoint period is lost at a time."""
    rng, runs, moments, unfinished, lost = random.Random(0), [make_run("kill_0")], [], 0, []
    while len(moments) < KILLS:
        run = runs[-1]
        before = run.last_finished(), run.checkpoint_iteration()
        run.start("DATALOADER.NUM_WORKERS", str(rng.choice([0, 2])))
        moment = wait_for_a_moment(run, rng, seconds_per_iteration, KILLS - len(moments))
        run.kill(signal.SIGKILL)
        lost.append(iterations_lost(run, *before))
        if run.done:  # the moment came too late: this run has ended, another begins
            runs.append(make_run(f"kill_{len(runs)}"))
        else:
            moments.append(moment)
            unfinished += bool(run.unfinished_files())
    before = runs[-1].last_finished(), runs[-1].checkpoint_iteration()
    runs[-1].start()
    runs[-1].finish()
    lost.append(iterations_lost(runs[-1], *before))
    numbers = [assert_same_end(run, reference) for run in runs]
    assert not runs[-1].unfinished_files()
    print(
        f"{KILLS} kills of {len(runs)} run(s) of {MAX_ITER} iterations: at most {max(lost)} lost, mean "
        f"{sum(lost) / KILLS:.1f}; {unfinished} kills while a file was written, {moments.count('evaluation')} in "
        f"evaluation; {numbers[0]} numbers of the final checkpoint are equal"
    )


def wait_for_a_moment(run: Run, rng: random.Random, seconds_per_iteration: float, kills_left: int) -> str:
    """Wait for a random moment of a random kind; returns the kind."""
    kind = rng.choices(["training", "writing a checkpoint", "evaluation", "start-up"], [10, 6, 2, 2])[0]
    if kind == "start-up":
        time.sleep(rng.uniform(0, 4))
        return kind
    if not run.wait_until_it_trains():
        return kind
    remaining = max(0, run.max_iter - 1 - run.checkpoint_iteration()) * seconds_per_iteration
    delay = rng.uniform(0, 2 * remaining / (kills_left + 1))
    if kind == "evaluation" and run.wait_until(lambda: "Start inference" in run.output()):
        delay = rng.uniform(0, 0.1)
    until = time.monotonic() + delay
    run.wait_until(lambda: time.monotonic() > until, poll=0.005)
    if kind == "writing a checkpoint":
        run.wait_until(run.unfinished_files, poll=0.0005)
    return kind


def iterations_lost(run: Run, finished: int, checkpoint: int) -> int:
    """Of the process before: this one must have started behind the last checkpoint."""
    if run.started_from() is None:
        return 0  # killed before: the next one will tell
    assert run.started_from() == checkpoint + 1, run.console
    lost = finished + 1 - run.started_from()
    assert lost <= PERIOD, run.console
    return max(lost, 0)


def test_signals(make_run, reference, seconds_per_iteration):
    """Nothing is lost, the exit code is the conventional one, and the command that is printed goes on."""
    run, rng = make_run("signals"), random.Random(0)
    run.start(resume=False)
    plan = [(signum, "training") for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM)]
    plan += [(signal.SIGTERM, "evaluation"), (signal.SIGINT, "start-up")]
    for signum, moment in plan:
        if moment == "start-up":
            run.wait_until(lambda: "Command line arguments" in run.output())
        else:
            run.wait_until_it_trains()
        if moment == "training":
            time.sleep(rng.uniform(0, run.max_iter / len(plan) / 2 * seconds_per_iteration))
        if moment == "evaluation":
            run.wait_until(lambda: "Start inference" in run.output())
        assert run.kill(signum) == 128 + signum, f"{moment}: {run.console}"
        if moment != "start-up":
            assert_nothing_is_lost(run)
        command = shlex.split(re.findall(r"run the same command with --resume: (.*)", run.output())[-1])
        assert Path(command[1]).name == "train_net.py"
        run.start_command(run.counted(command[2:]))
    run.kill(signal.SIGTERM)
    run.start_command(command)  # as it was printed
    run.finish()
    print(f"{len(plan)} signals: nothing lost; {assert_same_end(run, reference)} numbers are equal")


def test_a_second_signal_ends_at_once(make_run):
    run = make_run("twice")
    run.start(resume=False)
    run.wait_until_it_trains()
    while run.process.poll() is None:
        run.process.send_signal(signal.SIGTERM)
        time.sleep(0.001)
    assert run.process.returncode in (143, -signal.SIGTERM)


def assert_nothing_is_lost(run: Run) -> None:
    assert run.checkpoint_iteration() == run.last_finished(), run.console


def assert_one_error(run: Run, named: str) -> None:
    """The process has ended with exit code 1 and one line that names what it should."""
    assert run.wait_for_its_end() == 1, run.console
    (error,) = run.errors()
    assert named in error


def assert_resumed_ends_the_same(run: Run, reference: Run) -> None:
    run.start()
    run.finish()
    assert_same_end(run, reference)


def test_a_checkpoint_that_does_not_fit(make_run, reference):
    """A limit on the size of a file, as a full disk: one error, and the last good checkpoint stays."""
    run, limit = make_run("full_disk"), 2**20
    run.start(resume=False)
    run.wait_until(lambda: run.last_checkpoint() is not None)
    run.kill(signal.SIGKILL)
    good = run.last_checkpoint()
    run.start(preexec=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert_one_error(run, good)
    assert run.last_checkpoint() == good and not run.unfinished_files()
    assert_resumed_ends_the_same(run, reference)


def test_images_and_a_worker_that_are_gone(folder, reference):
    """The folder of the images in the middle of training, then a data worker: nothing is lost."""
    data, rng = folder / "lost_data", random.Random(0)
    run = Run(folder / "lost_run", data, MAX_ITER)
    images, elsewhere = data / "train", data / "elsewhere"

    run.start(resume=False)
    run.wait_for_iteration(rng.randrange(1, MAX_ITER // 2))
    images.rename(elsewhere)
    assert_one_error(run, str(images))
    elsewhere.rename(images)
    assert_nothing_is_lost(run)

    run.start()
    run.wait_for_iteration(rng.randrange(MAX_ITER // 2, MAX_ITER - 5))
    os.kill(run.children()[-1], signal.SIGKILL)
    assert_one_error(run, "worker")
    assert_nothing_is_lost(run)
    assert_resumed_ends_the_same(run, reference)
