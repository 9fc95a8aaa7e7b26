"""Mean and deviation of a trained model's logits over its training stream, for LogN."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.utils.events import EventStorage
from tqdm import tqdm

from eql_d2.data.whole_files import written_whole
from eql_d2.engine.settings import settings_of
from eql_d2.engine.trainer import Trainer
from eql_d2.errors import InputError
from eql_d2.modeling.calibration import LogitStatistics
from eql_d2.modeling.predictors import predictors_of

FILE = "logit_statistics.json"  # in a run's folder
IMAGES = 2000


def statistics_of_run(cfg, folder: Path, model: GeneralizedRCNN, num_images: int = IMAGES) -> LogitStatistics:
    """Those in the run's folder, or made and put there where there are none of its final weights, which ``model`` has.

    They are of ``num_images`` of the training stream, whose sampler and augmentation are the run's.
    """
    path, weights = folder / FILE, (folder / "model_final.pth").stat()
    key = {"size": weights.st_size, "mtime_ns": weights.st_mtime_ns, "images": num_images}
    if not (path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("made_of") == key):
        statistics = logit_statistics(model, training_batches(cfg, num_images))
        content = {"mean": statistics.mean.tolist(), "deviation": statistics.deviation.tolist(), "made_of": key}
        with written_whole(path) as file:
            json.dump(content, file)
    return LogitStatistics.from_file(str(path))


def training_batches(cfg, num_images: int) -> Iterator[list[dict]]:
    """The first batches of the training stream that hold so many images."""
    seen = 0
    progress = tqdm(total=num_images, desc=f"logits of {settings_of(cfg).train_sets}", unit="image", mininterval=2)
    for batch in Trainer.build_train_loader(cfg):
        yield batch
        seen += len(batch)
        progress.update(len(batch))
        if seen >= num_images:
            break


@torch.no_grad()
def logit_statistics(model: GeneralizedRCNN, batches) -> LogitStatistics:
    """Over the RoIs that training would sample, with the model as for evaluation; all stages of a cascade together."""
    predictors = predictors_of(model)
    rois, total, squares = 0, torch.zeros(()), torch.zeros(())
    with EventStorage(), sampling_rois(model, predictors) as logits:
        for batch in batches:
            model(batch)
            for z in map(torch.Tensor.double, logits):
                rois, total, squares = rois + len(z), total + z.sum(0), squares + (z**2).sum(0)
            logits.clear()
    if rois < 2:
        raise InputError("LogN: the training images gave no RoIs to take statistics of")
    mean = total / rois
    return LogitStatistics(mean.cpu(), (squares / rois - mean**2).clamp(min=0).sqrt().cpu())


@contextmanager
def sampling_rois(model: GeneralizedRCNN, predictors: list):
    """The model matches and samples proposals as in training, and nothing else; yields the list of the logits."""
    heads, logits = model.roi_heads, []
    # The model's and the heads' own methods look at `training`, not their layers, which stay as for evaluation.
    changes: list[tuple] = [(model, "training", True), (heads, "training", True), (model, "vis_period", 0)]
    changes += [(heads, name, False) for name in ("mask_on", "keypoint_on") if hasattr(heads, name)]
    # A loss would count and accumulate.
    changes += [(predictor, "losses", lambda *_args: {}) for predictor in predictors]
    with ExitStack() as stack:
        for change in changes:
            stack.enter_context(patch.object(*change))
        for predictor in predictors:
            hook = predictor.register_forward_hook(lambda _module, _args, out: logits.append(out[0]))
            stack.callback(hook.remove)
        yield logits
