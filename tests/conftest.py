"""Fixtures that several test files share."""

import logging
from pathlib import Path

import pytest
import torch
from detectron2.utils.logger import setup_logger
from hypothesis import settings

from eql_d2 import ClassFrequencies
from eql_d2.engine import load_config

# `make test` tries the same cases every time; tests/slow ten times as many, new ones.
settings.register_profile("test", max_examples=200, derandomize=True, deadline=None, database=None)
settings.register_profile("widely", max_examples=2000, deadline=None, database=None)
settings.load_profile("test")

# These loggers end at themselves from here on, where pytest finds them before each test. The first trainer of a process
# would do it else, in the middle of a test, whose log would be lost then.
for name in ("detectron2", "eql_d2"):
    setup_logger(name=name)

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def shared_data():
    """Real COCO images and LVIS annotations, or a skip where they are not."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real LVIS data at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def frequencies():
    """Seven categories: three rare, two common, two frequent."""
    return ClassFrequencies(
        image_count=[1, 9, 10, 11, 100, 101, 400],
        instance_count=[1, 20, 10, 30, 150, 202, 900],
        num_images=1000,
    )


@pytest.fixture
def counts_file(frequencies, tmp_path):
    """A counts file of the seven categories."""
    path = tmp_path / "counts.json"
    frequencies.save(path)
    return str(path)


@pytest.fixture
def tiny_cfg(counts_file, tmp_path):
    """A function that makes the config of a tiny model of seven classes with the given overrides."""

    def make(*overrides):
        cfg = load_config(
            Path(__file__).parents[1] / "configs" / "MiniLVIS" / "Base-MiniLVIS.yaml",
            [
                *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.NUM_CLASSES", 7),
                *("MODEL.ROI_BOX_HEAD.CLS_LOSS.COUNTS_FILE", counts_file),
                *("OUTPUT_DIR", str(tmp_path / "output")),
                *overrides,
            ],
        )
        return cfg

    return make


@pytest.fixture
def log_lines():
    """The messages that the losses log, as a list; unlike caplog whatever the loggers above them do."""
    logger, lines = logging.getLogger("eql_d2.losses"), []

    class Keeper(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    keeper, level = Keeper(), logger.level
    logger.addHandler(keeper)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(keeper)
    logger.setLevel(level)
