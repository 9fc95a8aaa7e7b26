"""What a finished run would score with another calibration, score threshold or number of detections: no training.

The number of detections and the threshold are cut from predictions that are there, which is exact: NMS keeps a
detection by looking only at higher scores. The strength of a calibration (:mod:`eql_d2.modeling.calibration`) changes
the scores before NMS, so the model is run again: once over the images, where backbone and proposals are computed once
for all strengths.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from tqdm import tqdm

from eql_d2.data import ClassFrequencies
from eql_d2.data.annotations import read_truth
from eql_d2.engine.checkpoint import LongTailCheckpointer
from eql_d2.engine.checks import check_evaluator_type, check_run
from eql_d2.engine.evaluators import training_frequencies
from eql_d2.engine.logit_statistics import IMAGES, statistics_of_run
from eql_d2.engine.settings import RunSettings, settings_of
from eql_d2.engine.setup import load_config, load_lazy_config, use_available_device
from eql_d2.engine.trainer import Trainer
from eql_d2.errors import InputError, one_line
from eql_d2.evaluation.categories import Categories
from eql_d2.evaluation.intervals import WeightedAP, bootstrap, group_means, interval
from eql_d2.evaluation.lvis_metrics import COCO_MAX_DETS, Detections, GroundTruth, Matching, best_of_each, match_lvis
from eql_d2.evaluation.predictions import ImagePredictions, as_detections, load
from eql_d2.evaluation.run_folder import read_run_config, run_config_file
from eql_d2.evaluation.tail_results import percent
from eql_d2.evaluation.thresholds import halves
from eql_d2.modeling.calibration import CALIBRATIONS, LogitStatistics
from eql_d2.modeling.predictors import predictors_of


@dataclass(frozen=True)
class Sweep:
    """What to vary; each combination is a row.

    Args:
        strengths: of the calibration, 0 for none; None takes the predictions that the run has saved.
        detections: of an image, -1 for all; None is the run's own number.
        thresholds: scores that a detection must exceed; None is the run's own.
        calibration: one of :data:`eql_d2.modeling.calibration.CALIBRATIONS`.
        task: "bbox" or "segm".
        tune: "AP", "APr", "APc" or "APf", or several of them: the strength that is best by it on one half of the images
            is compared with strength 0 on the other half; () does not.
        drawings: of the bootstrap, for the interval of that comparison.
        seed: of the halves and of the drawings.
        options: further keyword arguments of the calibration.
        statistics_images: of the training stream, for a calibration that needs its logits.
    """

    strengths: Sequence[float] | None = None
    detections: Sequence[int] | None = None
    thresholds: Sequence[float] | None = None
    calibration: str = "LogitAdjustment"
    task: str = "bbox"
    tune: Sequence[str] = ()
    drawings: int = 1000
    seed: int = 0
    options: dict = field(default_factory=dict)
    statistics_images: int = IMAGES

    def __post_init__(self):
        if self.tune and (not self.strengths or 0 not in self.strengths or len(self.strengths) < 2):
            raise InputError(
                f"a strength is tuned among several, against 0: give --strengths 0 and others, not {self.strengths}"
            )

    def rows(self, folder) -> list[dict]:
        """See :meth:`run`."""
        return self.run(folder)[0]

    def run(self, folder) -> tuple[list[dict], list[dict]]:
        """The rows of one run, for each of its test sets, and what tuning gives.

        Args:
            folder: output folder of `eql-d2 train`.

        Returns:
            dicts with run, dataset, strength ("saved" for the saved predictions), threshold, detections (the limit),
            kept (detections an image, mean), AP, APr, APc, APf; and with :attr:`tune`, for each threshold and limit,
            see :func:`tuned`.

        Raises:
            InputError: what is wrong with the run: no config, weights or predictions, or ones that are not whole, or
                more asked of the saved predictions than they hold.
        """
        folder = Path(folder)
        cfg = config_of_run(folder)
        run = settings_of(cfg)
        limits = list(self.detections or [run.detections_per_image])
        thresholds = list(self.thresholds or [run.score_threshold])
        most, lowest = -1 if -1 in limits else max(limits), min(thresholds)
        rows, tuned_rows = [], []
        for name in run.test_sets:
            DatasetCatalog.get(name)  # which sets the metadata
            if self.strengths is None:
                check_saved_suffice(run, most, lowest)
                predictions = {"saved": saved_detections(folder, name, self.task)}
            else:
                predictions = self._predict(cfg, folder, name, self.strengths, most, lowest)
            score = Scorer.of_dataset(cfg, name, self.task)
            matchings: dict = {}
            for strength, threshold, limit in itertools.product(predictions, thresholds, limits):
                setting = {"strength": strength, "threshold": threshold, "detections": limit}
                kept, matching = score.match(predictions[strength], threshold, limit)
                rows.append({"run": folder.name, "dataset": name, **setting, **score.scores(kept, matching)})
                if self.tune:
                    matchings.setdefault((threshold, limit), {})[strength] = matching
            for (threshold, limit), of_strength in matchings.items():
                setting = {"threshold": threshold, "detections": limit}
                for metric in self.tune:
                    result = tuned(of_strength, score.groups, metric, self.drawings, self.seed)
                    tuned_rows.append({"run": folder.name, "dataset": name, **setting, **result})
        return rows, tuned_rows

    def _predict(
        self, cfg, folder: Path, dataset_name: str, strengths: Sequence[float], limit: int, threshold: float
    ) -> dict:
        """Strength -> Detections, by the run's final weights."""
        model = model_of_run(cfg, folder)
        predictors = predictors_of(model)
        if not predictors:
            detector = getattr(model, "roi_heads", model)
            raise InputError(f"its {type(detector).__name__} is not of eql_d2, so has no calibration")
        calibration = CALIBRATIONS[self.calibration]
        known: LogitStatistics | ClassFrequencies
        if calibration.needs is LogitStatistics and isinstance(model, DenseDetector):
            raise InputError(
                f"{self.calibration} goes by the logits of ROI heads, and its {type(model).__name__} has none"
            )
        if calibration.needs is LogitStatistics and any(strengths):
            known = statistics_of_run(cfg, folder, model, self.statistics_images)
        elif calibration.needs is LogitStatistics:
            known = LogitStatistics.nothing(predictors[0].cls_loss.num_logits)
        else:
            known = settings_of(cfg).frequencies()
        calibrations = {
            strength: [
                calibration(predictor.cls_loss, known, strength, **self.options).to(model.device)
                for predictor in predictors
            ]
            for strength in strengths
        }
        for predictor in predictors:
            predictor.test_topk_per_image, predictor.test_score_thresh = limit, threshold
        images: dict[float, list[ImagePredictions]] = {strength: [] for strength in strengths}
        loader = Trainer.build_test_loader(cfg, dataset_name)
        for inputs in tqdm(loader, desc=f"{folder.name} on {dataset_name}", unit="batch", mininterval=2):
            for strength, outputs in predict_each(model, predictors, calibrations, inputs):
                images[strength] += [
                    ImagePredictions.pack(output["instances"].to("cpu"), image["image_id"])
                    for image, output in zip(inputs, outputs)
                ]
        mapping = MetadataCatalog.get(dataset_name).get("thing_dataset_id_to_contiguous_id")
        return {k: as_detections([p.with_dataset_ids(mapping) for p in of]) for k, of in images.items()}


@torch.no_grad()
def predict_each(model, predictors: list, calibrations: dict, inputs: list):
    """Yields each strength with the model's outputs for a batch, whose features are made once.

    Args:
        predictors: the box predictors of its head, or the dense detector itself.
        calibrations: strength -> one calibration for each predictor.
    """
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    if isinstance(model, DenseDetector):
        features = [features[name] for name in model.head_in_features]
        detect = partial(model.forward_inference, images, features, model.head(features))
    else:
        proposals, _ = model.proposal_generator(images, features, None)
        detect = partial(detections_of, model, images, features, proposals)
    for strength, of_predictors in calibrations.items():
        for predictor, calibration in zip(predictors, of_predictors):
            predictor.calibration = calibration
        yield strength, GeneralizedRCNN._postprocess(detect(), inputs, images.image_sizes)


def detections_of(model: GeneralizedRCNN, images, features: dict, proposals: list) -> list:
    return model.roi_heads(images, features, proposals, None)[0]


@dataclass(frozen=True)
class Scorer:
    """Scores cut detections on one dataset, by its own rules."""

    truth: GroundTruth
    groups: dict  # letter -> (K,) bool
    task: str

    @classmethod
    def of_dataset(cls, cfg, dataset_name: str, task: str) -> "Scorer":
        metadata = MetadataCatalog.get(dataset_name)
        truth = GroundTruth.load(read_truth(metadata.json_file), federated=check_evaluator_type(dataset_name) == "lvis")
        return cls(truth, Categories.of(truth, metadata, training_frequencies(settings_of(cfg))).members(), task)

    def match(self, detections: Detections, threshold: float, limit: int) -> tuple[Detections, Matching]:
        """The detections that are left, and their matching."""
        image = np.unique(detections.image_id, return_inverse=True)[1]
        kept = detections.select((detections.score > threshold) & best_of_each(image, detections.score, limit))
        return kept, match_lvis(self.truth, kept, self.task, -1 if self.truth.federated else COCO_MAX_DETS)

    def scores(self, kept: Detections, matching: Matching) -> dict:
        """Mean number of detections an image, and AP in percent."""
        ap = matching.curves.category_ap()
        of_groups = {f"AP{letter}": percent(ap[members]) for letter, members in self.groups.items()}
        return {"kept": len(kept.score) / len(self.truth.image_ids), "AP": percent(ap), **of_groups}


def tuned(matchings: dict[float, Matching], groups: dict, metric: str, drawings: int, seed: int) -> dict:
    """The strength that is best on one half of the images, against strength 0 on the other half.

    Args:
        matchings: strength -> matching, 0 among them.
        groups: letter -> (K,) bool.
        metric: "AP", or that of a group, to choose by.
        drawings, seed: of the bootstrap over the images of the other half; the seed is also that of the halves.

    Returns:
        metric, strength (the best), and in percent on the other half: none (strength 0), tuned, gain, low and high (the
        95 % interval of the gain), and verdict: "gain", "loss" or "within chance".
    """
    detectors = {strength: WeightedAP(matching) for strength, matching in matchings.items()}
    K = len(next(iter(matchings.values())).truth.category_ids)
    named = {"AP": np.ones(K, dtype=bool), **{f"AP{letter}": members for letter, members in groups.items()}}
    if metric not in named:
        raise InputError(f"--tune is {metric}, but the dataset has only {', '.join(named)}")
    group = {metric: named[metric]}
    num_images = detectors[0].num_images
    first, second = halves(num_images, seed)
    on_first, on_second = (np.bincount(half, minlength=num_images) for half in (first, second))
    value = {strength: group_means(ap(on_first), group)[metric] for strength, ap in detectors.items()}
    best = max(value, key=lambda strength: (np.nan_to_num(value[strength], nan=-1.0), -strength))
    pair = [detectors[0], detectors[best]]
    none, with_best = (group_means(ap(on_second), group)[metric] for ap in pair)
    drawn = bootstrap(pair, group, drawings, seed, images=second)[metric]
    low, high = interval(with_best - none, drawn[:, 1] - drawn[:, 0]) or (np.nan, np.nan)
    verdict = "gain" if low > 0 else "loss" if high < 0 else "within chance"
    numbers = {"none": none, "tuned": with_best, "gain": with_best - none, "low": low, "high": high}
    return {"metric": metric, "strength": best, **{k: 100 * v for k, v in numbers.items()}, "verdict": verdict}


def config_of_run(folder: Path):
    """Its config, of either kind, on a device that there is."""
    path = run_config_file(folder)
    if "dataloader" in read_run_config(folder):
        cfg = load_lazy_config(str(path), [f"train.output_dir={folder}"])
        use_available_device(cfg)
    else:
        cfg = load_config(str(path), ["OUTPUT_DIR", str(folder)])
        use_available_device(cfg)
        cfg.freeze()
    check_run(cfg, train=False)
    return cfg


def model_of_run(cfg, folder: Path) -> GeneralizedRCNN:
    """The model with the run's final weights, in evaluation mode."""
    model = Trainer.build_model(cfg)
    LongTailCheckpointer(model).resume_or_load(str(folder / "model_final.pth"), resume=False)
    return model.eval()


def check_saved_suffice(run: RunSettings, most: int, lowest: float) -> None:
    """Saved predictions are cut already, so that only less can be asked of them."""
    limit, threshold = run.detections_per_image, run.score_threshold
    if lowest < threshold or (limit >= 0 and not 0 <= most <= limit):
        raise InputError(
            f"its saved predictions are the best {limit} of an image above a score of {threshold}, and up to {most} "
            f"above {lowest} are asked for: give --strengths 0 to predict anew"
        )


def saved_detections(folder: Path, dataset_name: str, task: str) -> Detections:
    """The predictions that the run's last evaluation has left, in the dataset's ids."""
    mapping = MetadataCatalog.get(dataset_name).get("thing_dataset_id_to_contiguous_id")
    images = load(folder / "inference" / dataset_name)
    detections = as_detections([image.with_dataset_ids(mapping) for image in images])
    if task == "segm" and detections.segmentation is None:
        raise InputError(f"its saved predictions on {dataset_name} have no masks: give --task bbox")
    return detections


def sweep_runs(folders: Sequence, sweep: Sweep) -> tuple[list[dict], list[dict], dict[str, str]]:
    """Rows of the table, rows of what tuning gives, and folder -> why it was skipped."""
    rows, tuned_rows, skipped = [], [], {}
    for folder in folders:
        try:
            of_run = sweep.run(folder)
        except InputError as error:
            skipped[str(folder)] = one_line(error)
            continue
        rows += of_run[0]
        tuned_rows += of_run[1]
    return rows, tuned_rows, skipped
