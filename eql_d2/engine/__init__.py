"""Training: configs, the trainer, its checkpoints."""

from eql_d2.engine.checkpoint import LongTailCheckpointer
from eql_d2.engine.checks import check_run
from eql_d2.engine.interruption import Interrupted, resumable_tool
from eql_d2.engine.launch import launch_tool, one_line_errors
from eql_d2.engine.main import summarize_run
from eql_d2.engine.settings import RunSettings, settings_of
from eql_d2.engine.setup import load_config, setup, use_available_device
from eql_d2.engine.train_step import DataError, TrainStep
from eql_d2.engine.trainer import Trainer

__all__ = [
    "DataError",
    "Interrupted",
    "LongTailCheckpointer",
    "RunSettings",
    "TrainStep",
    "Trainer",
    "check_run",
    "launch_tool",
    "load_config",
    "one_line_errors",
    "resumable_tool",
    "settings_of",
    "setup",
    "summarize_run",
    "use_available_device",
]
