"""Training: configs, the trainer, its checkpoints."""

from eql_d2.engine import base_weights  # noqa: F401  (registers mini_lvis://)
from eql_d2.engine.checkpoint import LongTailCheckpointer
from eql_d2.engine.setup import load_config, setup
from eql_d2.engine.summary import summarize_run
from eql_d2.engine.trainer import Trainer

__all__ = ["LongTailCheckpointer", "Trainer", "load_config", "setup", "summarize_run"]
