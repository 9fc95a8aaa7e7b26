"""Checkpoints whose classifier has another width than the model's, and weights that cannot be downloaded."""

import logging
import os
from urllib.parse import urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import Detectron2Handler, PathManager
from iopath.common.file_io import get_cache_dir

from eql_d2.modeling import LongTailFastRCNNOutputLayers
from eql_d2.modeling.normed_linear import NormedLinear

logger = logging.getLogger(__name__)


class LongTailCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which also loads a classifier with or without the background row.

    A softmax model has K + 1 rows in ``cls_score``, a sigmoid model K. Detectron2 would drop the whole layer with a
    log line; here the background row is dropped or a new one appended, and any other width is an error.

    Args:
        model, save_dir, checkpointables: as of ``DetectionCheckpointer``.
        new_classifier: leave the classifier out of the weights that a new run starts from, whatever its width. A
            resumed run goes on with its own.
    """

    def __init__(self, model, save_dir="", *, new_classifier: bool = False, **checkpointables):
        super().__init__(model, save_dir, **checkpointables)
        self.new_classifier = new_classifier

    def resume_or_load(self, path, *, resume=True):
        if resume and self.has_checkpoint():
            self.new_classifier = False
        return super().resume_or_load(path, resume=resume)

    def load(self, path, *args, **kwargs):
        if path:
            require_file(path)
        return super().load(path, *args, **kwargs)

    def _load_model(self, checkpoint):
        weights = checkpoint["model"]
        if self.new_classifier:
            drop_classifier(weights)
        for name, module in self.model.named_modules():
            if isinstance(module, LongTailFastRCNNOutputLayers):
                for parameter in ("weight", "bias"):
                    fit_cls_score(weights, f"{name}.cls_score.{parameter}", module)
        return super()._load_model(checkpoint)


def require_file(path: str) -> None:
    """Fetch a checkpoint into the local cache if it is remote.

    Args:
        path: a file, `detectron2://...`, `https://...`; a query (`?matching_heuristics=True`) is no part of the name.

    Raises:
        FileNotFoundError: it is not there, or cannot be downloaded; with the place to put it by hand.
    """
    path = urlparse(path)._replace(query="").geturl()
    try:
        if os.path.isfile(PathManager.get_local_path(path)):
            return
        reason = "there is no such file"
    except OSError as error:
        reason = f"it cannot be downloaded ({error})"
    cure = "set MODEL.WEIGHTS to a checkpoint, or to '' to start from random weights"
    url = path.replace(Detectron2Handler.PREFIX, Detectron2Handler.S3_DETECTRON2_PREFIX)
    if urlparse(url).scheme in ("http", "https", "ftp"):
        place = os.path.join(get_cache_dir(), urlparse(url).path.lstrip("/"))
        cure = f"download {url} elsewhere and put it at {place} (the folder is $FVCORE_CACHE), or {cure}"
    raise FileNotFoundError(f"the weights {path} are not here: {reason}. {cure[0].upper()}{cure[1:]}")


def drop_classifier(weights: dict) -> None:
    """Take all of ``cls_score`` out of ``weights``, in place."""
    dropped = [name for name in weights if ".cls_score." in name]
    for name in dropped:
        del weights[name]
    logger.info("MODEL.NEW_CLASSIFIER: %s of the weights are left out", ", ".join(dropped) or "no classifier")


def background_row(rows: torch.Tensor, cls_score: torch.nn.Linear) -> torch.Tensor:
    """One row to go below ``rows``: zeros, or for a normalised classifier, to which zero is no direction, its own."""
    if isinstance(cls_score, NormedLinear) and rows.dim() > 1:
        return cls_score.weight[-1:].detach().to(rows)
    return torch.zeros_like(rows[:1])


def fit_cls_score(weights: dict, name: str, predictor: LongTailFastRCNNOutputLayers) -> None:
    """Give the parameter ``name`` of ``weights`` as many rows as ``predictor.cls_score`` has, in place.

    Raises:
        ValueError: the number of rows is neither the model's, nor that with or without background.
    """
    name = name if name in weights else f"module.{name}"  # saved from a DistributedDataParallel model
    if name not in weights:
        return
    rows = torch.as_tensor(weights[name])
    K, wanted = predictor.num_classes, predictor.cls_score.out_features
    if len(rows) == wanted:
        return
    if len(rows) == K + 1 and wanted == K:
        weights[name] = rows[:K]
        logger.info("%s: dropped the background row, since the loss has %d logits", name, K)
    elif len(rows) == K and wanted == K + 1:
        weights[name] = torch.cat([rows, background_row(rows, predictor.cls_score)])
        logger.warning(
            "%s has no background row: appended a new one. Train on before you trust the scores.", name
        )
    else:
        raise ValueError(
            f"{name} of the checkpoint has {len(rows)} rows, but the model ({type(predictor.cls_loss).__name__}, "
            f"{K} classes) has {wanted}: set MODEL.ROI_HEADS.NUM_CLASSES and MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME to what "
            f"the checkpoint was trained with, or start a new classifier from it by MODEL.NEW_CLASSIFIER True"
        )
