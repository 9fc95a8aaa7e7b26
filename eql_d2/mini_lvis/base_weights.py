"""`mini_lvis://base_weights.pth`: weights trained on other glyphs, made on first use and cached.

They play the part of an ImageNet backbone: a rare category of MiniLVIS has a handful of boxes, from which a classifier
can be learned, but not a detector. The classifier itself is left out, so every loss starts from its own.
"""

import hashlib
import json
import logging
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler, file_lock

from eql_d2 import get_config_file
from eql_d2.data.registration import datasets_root
from eql_d2.data.whole_files import written_whole
from eql_d2.engine.setup import load_config, use_available_device
from eql_d2.errors import InputError
from eql_d2.mini_lvis.datasets import SPECS
from eql_d2.mini_lvis.generator import VERSION

logger = logging.getLogger(__name__)

CONFIG = "MiniLVIS/base_weights.yaml"


class MiniLVISWeightsHandler(PathHandler):
    """Resolves `mini_lvis://base_weights.pth`, as Detectron2's handler does `detectron2://`."""

    PREFIX = "mini_lvis://"

    def _get_supported_prefixes(self):
        return [self.PREFIX]

    def _get_local_path(self, path, force=False, **kwargs):
        if path != f"{self.PREFIX}base_weights.pth":
            raise InputError(f"there is no {path}, only {self.PREFIX}base_weights.pth")
        return str(ensure_base_weights())

    def _isfile(self, path, **kwargs):
        return path == f"{self.PREFIX}base_weights.pth"

    def _open(self, path, mode="r", buffering=-1, **kwargs):
        return open(self._get_local_path(path), mode, buffering=buffering)


PathManager.register_handler(MiniLVISWeightsHandler(), allow_override=True)


def ensure_base_weights() -> Path:
    """Path of the cached weights, which are trained first if they are not there; a few minutes on a CPU core.

    Their name holds a hash of the config file and of the dataset's spec, so a change of either makes new ones.
    Training runs in a process of its own: this one may be one of several that wait for the weights.
    """
    config = CfgNode.load_yaml_with_base(get_config_file(CONFIG))
    made_of = json.dumps([config, asdict(SPECS["mini_lvis_base"]), VERSION], sort_keys=True)  # type: ignore[call-overload]
    key = hashlib.sha256(made_of.encode()).hexdigest()[:12]
    path = (datasets_root() / "mini_lvis_weights" / f"base_{key}.pth").absolute()
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(str(path)):
        if not path.is_file():
            logger.info("training the base weights of MiniLVIS once (minutes), log in %s", path.with_suffix(""))
            # Without the variables by which torchrun would draw the new process into this one's group.
            environment = {
                k: v
                for k, v in os.environ.items()
                if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
            }
            command = [sys.executable, "-m", "eql_d2.mini_lvis.base_weights", str(path)]
            subprocess.run(command, check=True, env=environment)
    return path


def train_base_weights(path: Path) -> None:
    """Train on the base glyphs and write everything but the classifier to ``path``; continues if it was stopped."""
    from eql_d2.engine.trainer import Trainer  # here: the trainer's package imports this module

    cfg = load_config(get_config_file(CONFIG), ["OUTPUT_DIR", str(path.with_suffix(""))])
    use_available_device(cfg)
    default_setup(cfg, None)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    weights = {k: v for k, v in trainer.model.state_dict().items() if ".cls_score." not in k}
    with written_whole(path, "wb") as file:
        torch.save({"model": weights}, file)


if __name__ == "__main__":
    train_base_weights(Path(sys.argv[1]))
