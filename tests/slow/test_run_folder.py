"""A training's folder, by real processes: a second training, an evaluation, a scheduler's signal, a resume.

And what it meets: small file systems in the places of the folder and of /dev/shm, a locale without UTF-8, no asserts.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from eql_d2 import get_config_file

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture
def arguments(tmp_path):
    """Those of a training that does not end by itself, on four images of two categories."""
    for i in range(4):
        Image.new("RGB", (64, 64), (60 * i, 20, 120)).save(tmp_path / f"{i}.png")
    boxes = [{"id": i + 1, "image_id": i, "category_id": i % 2, "bbox": [8, 8, 40, 40]} for i in range(4)]
    data = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 64, "width": 64} for i in range(4)],
        "categories": [{"id": 0, "name": "苹果"}, {"id": 1, "name": "яблоко"}],
        "annotations": [{**box, "area": 1600, "iscrowd": 0} for box in boxes],
    }
    (tmp_path / "data.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    register = [["run_folder", str(tmp_path / "data.json"), str(tmp_path)]]
    overrides = {
        "DATASETS.REGISTER": register,
        "DATASETS.TRAIN": ("run_folder",),
        "DATASETS.TEST": ("run_folder",),
        "MODEL.ROI_HEADS.NUM_CLASSES": 2,
        "MODEL.WEIGHTS": "",
        "MODEL.DEVICE": "cpu",
        "SOLVER.IMS_PER_BATCH": 1,
        "SOLVER.MAX_ITER": 100_000,
        "SOLVER.CHECKPOINT_PERIOD": 5,
        "SOLVER.BASE_LR": 1e-4,
        "DATALOADER.NUM_WORKERS": 1,
        "OUTPUT_DIR": tmp_path / "run",
    }
    return [str(part) for pair in overrides.items() for part in pair]


def command(*options, arguments, python=(sys.executable,)):
    config = get_config_file("MiniLVIS/eql_faster_rcnn.yaml")
    return [*python, "-m", "eql_d2", "train", "--config-file", str(config), *options, *arguments]


def end_of(*options, arguments, python=(sys.executable,), **environment):
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    line = command(*options, arguments=arguments, python=python)
    return subprocess.run(line, env=env, capture_output=True, encoding="utf-8", timeout=1800)


def python_with_a_small(folder, size):
    """A Python that sees a file system of this size in the place of the folder; a skip where none may be made."""
    mount = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size={size} tmpfs "{folder}" && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("no right to mount a small file system")
    return (*mount, sys.executable)


def errors_of(result):
    """The lines that say what went wrong, of a training that has failed without a traceback."""
    assert result.returncode == 1 and "Traceback" not in result.stdout + result.stderr, result.stderr[-3000:]
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


def test_one_training_at_a_time_that_a_scheduler_stops(arguments, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open(tmp_path / "console", "w") as console:
        training = subprocess.Popen(command(arguments=arguments), env=env, stdout=console, stderr=console)
    tag = tmp_path / "run" / "last_checkpoint"
    while not tag.exists():
        assert training.poll() is None, (tmp_path / "console").read_text()[-3000:]
        time.sleep(0.2)
    config = (tmp_path / "run" / "config.yaml").read_text()

    second = end_of(arguments=arguments)
    assert second.returncode == 1 and f"another training writes to {tmp_path / 'run'}" in second.stderr
    weights = ["MODEL.WEIGHTS", str(tmp_path / "run" / tag.read_text())]
    beside = end_of("--eval-only", arguments=[*arguments, *weights])
    assert beside.returncode == 0, beside.stderr[-3000:]
    assert (tmp_path / "run" / "config.yaml").read_text() == config
    assert weights[1] in (tmp_path / "run" / "inference" / "config.yaml").read_text()

    training.send_signal(signal.SIGUSR1)
    assert training.wait(600) == 128 + signal.SIGUSR1
    other = end_of("--resume", arguments=[*arguments, "MODEL.ROI_HEADS.NAME", "DropLossROIHeads"])
    assert other.returncode == 1 and "EqualizationLoss" in other.stderr and "DropLoss" in other.stderr
    stopped = int(tag.read_text().removeprefix("model_").removesuffix(".pth"))
    on = end_of("--resume", arguments=[*arguments, "SOLVER.MAX_ITER", str(stopped + 3)])  # as a requeued job
    assert on.returncode == 0, on.stderr[-3000:]
    assert f"Starting training from iteration {stopped + 1}" in on.stdout


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGUSR2, signal.SIGTERM])
def test_two_processes_stop_together_by_a_signal_to_the_launcher(arguments, tmp_path, signum):
    arguments = [*arguments, "SOLVER.IMS_PER_BATCH", "2", "SOLVER.CHECKPOINT_PERIOD", "100000"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    two = ("--num-gpus", "2", "--dist-url", "auto")
    with open(tmp_path / "console", "w") as console:
        line = command(*two, arguments=arguments)
        heard = lambda: signal.signal(signum, signal.SIG_DFL)  # also where the tests run under nohup
        training = subprocess.Popen(line, env=env, stdout=console, stderr=console, preexec_fn=heard)
    metrics = tmp_path / "run" / "metrics.json"
    while not (metrics.exists() and metrics.read_text()):  # some iterations are done
        assert training.poll() is None, (tmp_path / "console").read_text()[-3000:]
        time.sleep(0.2)
    training.send_signal(signum)
    assert training.wait(600) == 128 + signum
    stopped = int((tmp_path / "run" / "last_checkpoint").read_text().removeprefix("model_").removesuffix(".pth"))
    on = end_of(*two, "--resume", arguments=[*arguments, "SOLVER.MAX_ITER", str(stopped + 3)])
    assert on.returncode == 0 and f"Starting training from iteration {stopped + 1}" in on.stdout, on.stderr[-3000:]


def test_a_disk_that_is_full_at_each_place(arguments, tmp_path):
    """At the first checkpoint, a later one, the last, in the evaluation: one error with the file and what is left."""
    short = [*arguments, "SOLVER.MAX_ITER", "4", "SOLVER.CHECKPOINT_PERIOD", "2"]
    assert end_of(arguments=short).returncode == 0
    run = tmp_path / "run"
    one, all_of_them = ((run / "model_final.pth").stat().st_size, sum(p.stat().st_size for p in run.glob("*.pth")))
    room = 120_000  # for the log and TensorBoard's file
    places = [
        (one // 2, "the checkpoint .*model_0000001.pth: No space left on device. There is none before it"),
        (one * 3 // 2, "the checkpoint .*model_0000003.pth: No space .* last good one is .*model_0000001.pth"),
        (one * 5 // 2, "the checkpoint .*model_final.pth: No space .* last good one is .*model_0000003.pth"),
        (all_of_them + room, ".*/inference/.*: No space left on device. The last good checkpoint is .*model_final.pth"),
    ]
    for size, says in places:
        python = python_with_a_small(run, size)
        (error,) = errors_of(end_of(arguments=short, python=python))
        assert re.fullmatch(f"error: cannot write {says}.* Make room .* run the same command with --resume", error)


def test_shared_memory_that_is_too_small_for_the_data_workers(arguments):
    python = python_with_a_small("/dev/shm", 65536)
    result = end_of(arguments=[*arguments, "DATALOADER.NUM_WORKERS", "2"], python=python)
    assert result.returncode == 1
    assert "error: DataLoader worker" in result.stderr
    assert "No space left on device" in result.stderr and "If /dev/shm is full, make it larger" in result.stderr


def test_a_locale_without_utf8_and_python_without_asserts(arguments, tmp_path):
    """A whole training and an evaluation, with categories whose names ASCII lacks."""
    python, locale = (sys.executable, "-O"), {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    arguments = [*arguments, "SOLVER.MAX_ITER", "4"]
    training = end_of(arguments=arguments, python=python, **locale)
    final = tmp_path / "run" / "model_final.pth"
    evaluation = end_of("--eval-only", arguments=[*arguments, "MODEL.WEIGHTS", str(final)], python=python, **locale)
    for result in (training, evaluation):
        assert result.returncode == 0, result.stderr[-3000:]
        assert "Error" not in result.stdout + result.stderr and "Traceback" not in result.stdout + result.stderr
    assert "\\u82f9\\u679c" in training.stdout
    assert "苹果" in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert "苹果" in (tmp_path / "run" / "inference" / "run_folder" / "categories_bbox.csv").read_text(encoding="utf-8")
