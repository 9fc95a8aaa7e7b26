"""Two CPU processes train and evaluate, started in each of the ways; and what their failures look like."""

import importlib.util
import os
import socket
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch.testing import assert_close

from eql_d2.engine import LongTailCheckpointer, Trainer, launch, launch_tool, load_config
from eql_d2.mini_lvis.datasets import register_mini_lvis
from eql_d2.mini_lvis.generator import MiniLVISSpec

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "two_processes.py"
CONFIG = str(ROOT / "configs" / "quick_schedules" / "mini_lvis_eql_faster_rcnn_instant_test.yaml")
SPEC = MiniLVISSpec(num_categories=7, num_train_images=30, num_val_images=7, max_image_count=20, min_val_images=2)
NAME = "eql_d2_test_processes"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# Each way to start two processes: the commands' beginnings, and their arguments.
def with_num_gpus():
    return [([], ["--num-gpus", "2", "--dist-url", "auto"])]


def with_torchrun():
    return [(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"], [])]


def with_two_machines():
    url = f"tcp://127.0.0.1:{free_port()}"
    return [([], ["--num-machines", "2", "--machine-rank", str(rank), "--dist-url", url]) for rank in (0, 1)]


@pytest.fixture(scope="module")
def overrides(tmp_path_factory):
    """Those that make the config of a few iterations on a small MiniLVIS."""
    register_mini_lvis(NAME, SPEC, tmp_path_factory.mktemp("datasets") / "mini")
    names = [f"{NAME}_{split}" for split in ("train", "val")]
    register = []
    for name in names:
        metadata = MetadataCatalog.get(name)
        metadata.prepare()
        register.append([name, metadata.json_file, metadata.image_root])
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    yield [
        *("DATASETS.REGISTER", str(register), "DATASETS.TRAIN", str((names[0],)), "DATASETS.TEST", str((names[1],))),
        *("MODEL.ROI_HEADS.NUM_CLASSES", "7", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"),
        *("SOLVER.IMS_PER_BATCH", "4", "SOLVER.BASE_LR", "0.02", "SOLVER.WARMUP_ITERS", "0", "SOLVER.MAX_ITER", "2"),
    ]


def start(way, output, overrides, **environment):
    """Start two_processes.py in this way; returns the processes, one a machine."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    arguments = ["--config-file", CONFIG]
    return [
        subprocess.Popen(
            [sys.executable, *before, str(SCRIPT), *arguments, *after, "OUTPUT_DIR", str(output), *overrides],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for before, after in way()
    ]


def finish(processes):
    """Exit code and output of each; a process that hangs is an error."""
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, output) for process, output in zip(processes, outputs)]


def only(way):
    return pytest.mark.parametrize("run", [way], indirect=True, ids=[way.__name__])


# Of the first two by default; that failures end both of two machines is tested with those below.
WAYS = [with_num_gpus, with_torchrun, pytest.param(with_two_machines, marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: way.__name__)
def run(request, overrides, tmp_path_factory):
    """The output folder of a run in two processes, and what each wrote."""
    output = tmp_path_factory.mktemp(request.param.__name__)
    extra = [] if request.param is with_num_gpus else ["DATASETS.TEST", "()"]  # one evaluation will do
    if request.param is with_torchrun:
        extra += ["SOLVER.ACCUMULATE_STEPS", "2", "SOLVER.AMP.ENABLED", "True"]
    for code, printed in finish(start(request.param, output, [*overrides, *extra])):
        assert code == 0, printed[-5000:]
    return output, [torch.load(output / f"rank{rank}.pth", weights_only=False) for rank in (0, 1)]


@pytest.fixture(scope="module")
def two_processes():
    """The script as a module, for what its processes do together to be done in one."""
    spec = importlib.util.spec_from_file_location("two_processes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_processes_end_with_equal_weights(run):
    """And with equal statistics of batch normalisation, or each would evaluate another model."""
    output, (first, second) = run
    assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    saved = torch.load(output / "model_final.pth", weights_only=False)["model"]
    assert_close({k: torch.as_tensor(v) for k, v in saved.items()}, dict(first["weights"]), rtol=0, atol=0)
    assert any("running_var" in name for name in saved)


@only(with_num_gpus)
def test_one_process_evaluates_the_checkpoint_the_same(run, overrides):
    output, (first, second) = run
    cfg = load_config(CONFIG, [*overrides, "OUTPUT_DIR", str(output / "one")])
    model = Trainer.build_model(cfg)
    LongTailCheckpointer(model).load(str(output / "model_final.pth"))
    results = Trainer.test(cfg, model)
    assert results["bbox"]["AR@300"] > 0
    assert_close(dict(first["results"]["bbox"]), dict(results["bbox"]), rtol=0, atol=0, equal_nan=True)
    assert not second["results"]


def test_gradients_of_processes_and_micro_batches_are_those_of_the_joined_batch(run, two_processes):
    """Two processes with two micro-batches each, against one step on all."""
    expected, _ = two_processes.step_on(two_processes.STEPS * [two_processes.X])
    for got in run[1]:
        assert_close(got["accumulated"][0], expected, rtol=1e-12, atol=1e-12)


def test_statistics_of_batch_normalisation_are_averaged(run, two_processes):
    parts = [two_processes.step_on(two_processes.STEPS * [x], norm=True)[0] for x in two_processes.X.chunk(2)]
    for got in run[1]:
        for name in ("norm.running_mean", "norm.running_var"):  # which in this model no weight has a part in
            assert_close(got["normalised"][0][name], (parts[0][name] + parts[1][name]) / 2, rtol=1e-12, atol=1e-12)


def test_an_overflow_in_one_process_is_skipped_in_both(run):
    (first, skipped), (second, skipped_too) = (got["overflow"] for got in run[1])
    assert skipped == skipped_too == 1
    assert_close(first, second, rtol=0, atol=0)
    assert all(x.isfinite().all() for x in first.values())


def test_a_nan_in_one_process_stops_both(run):
    first, second = (got["nan"] for got in run[1])
    assert "Loss became infinite or NaN" in first and "infinite or NaN 1 time(s)" in second


def test_data_that_one_process_cannot_read_stop_both(run):
    assert [got["unreadable"] for got in run[1]] == 2 * ["image 7 cannot be read"]


def test_a_process_that_fails_ends_the_others(overrides, tmp_path):
    """Each says so in one line: one names the cause, the other says that it is elsewhere.

    The failure is in the last iteration, where Detectron2 would evaluate, while the other waits for its gradients.
    """
    results = finish(start(with_two_machines, tmp_path, overrides, FAILING_RANK="1"))
    for (code, printed), message in zip(results, ("lost another process of this run", "a failure as planned")):
        assert code == 1 and [x for x in printed.splitlines() if x.startswith(f"error: {message}")], printed[-3000:]
    assert not (tmp_path / "inference").exists()


def arguments(**given):
    return Namespace(**{"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto", **given})


@pytest.mark.parametrize(
    "given, message",
    [
        ({"num_gpus": 0}, "--num-gpus and --num-machines must be at least 1, got 0 and 1"),
        ({"num_machines": 2, "machine_rank": 2}, "--machine-rank is 2: with --num-machines 2 it must be 0 to 1"),
        ({"num_machines": 2}, "--dist-url auto is for one machine"),
    ],
)
def test_arguments_that_make_no_sense(given, message, capsys):
    with pytest.raises(SystemExit, match="1"):
        launch_tool(None, arguments(**given))
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_more_processes_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    launch.check_launch_arguments(arguments(num_gpus=2))
    with pytest.raises(ValueError, match="--num-gpus is 4, but this machine has 2 GPUs"):
        launch.check_launch_arguments(arguments(num_gpus=4))


def test_a_port_that_is_taken():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = {"dist_url": f"tcp://127.0.0.1:{other.getsockname()[1]}"}
        with pytest.raises(ValueError, match=r"port \d+ of --dist-url is taken.*--dist-url auto"):
            launch.check_launch_arguments(arguments(num_gpus=2, **taken))
        launch.check_launch_arguments(arguments(**taken))  # one process needs no port
        launch.check_launch_arguments(arguments(num_machines=2, machine_rank=1, **taken))  # it is the other machine's


def test_torchrun_alone_says_how_many_processes_there_are(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "0")
    for name in launch.WORKER_VARIABLES[1:]:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit):
        launch_tool(None, arguments())
    assert "LOCAL_WORLD_SIZE, RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT is not" in capsys.readouterr().err
    for name in launch.WORKER_VARIABLES:
        monkeypatch.setenv(name, "0")
    with pytest.raises(SystemExit):
        launch_tool(None, arguments(num_gpus=2))
    assert capsys.readouterr().err.startswith("error: torchrun starts the processes: leave away --num-gpus")


@pytest.mark.parametrize(
    "error, code, message",
    [
        (mp.ProcessExitedException("...", 0, 0, exit_code=3), 3, ""),
        (mp.ProcessExitedException("process 1", 1, 0, -9, "SIGKILL"), 137, "error: process 1; is memory short?"),
        (mp.ProcessExitedException("process 1", 1, 0, -15, "SIGTERM"), 143, "error: process 1"),
    ],
)
def test_exit_codes(error, code, message, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(launch, "launch", fail)
    with pytest.raises(SystemExit, match=f"^{code}$"):
        launch_tool(None, arguments())
    assert capsys.readouterr().err.strip() == message


def test_a_lost_connection_is_one_line(capsys):
    def main(error):
        raise error

    gloo = RuntimeError("[/src/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:43167.")
    for error in (gloo, torch.distributed.DistBackendError("NCCL error")):
        with pytest.raises(SystemExit, match="1"):
            launch.run(main, error)
        assert capsys.readouterr().err.startswith("error: lost another process of this run")
    with pytest.raises(RuntimeError, match="of our own"):
        launch.run(main, RuntimeError("of our own"))
