"""A training's folder, by real processes: a second training, an evaluation, a scheduler's signal, a resume."""

import json
import os
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
        "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
        "annotations": [{**box, "area": 1600, "iscrowd": 0} for box in boxes],
    }
    (tmp_path / "data.json").write_text(json.dumps(data))
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


def command(*options, arguments):
    config = get_config_file("MiniLVIS/eql_faster_rcnn.yaml")
    return [sys.executable, "-m", "eql_d2", "train", "--config-file", str(config), *options, *arguments]


def end_of(*options, arguments):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command(*options, arguments=arguments), env=env, capture_output=True, text=True, timeout=1800)


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
