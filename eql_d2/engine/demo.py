"""Detections on images of one's own: finding the files, predicting, choosing what to draw, drawing it."""

import glob
import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.detection_utils import read_image
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import UnidentifiedImageError

from eql_d2.data.image_errors import eight_bits_alone
from eql_d2.drawing.panels import best_places
from eql_d2.engine.checkpoint import LongTailCheckpointer
from eql_d2.engine.settings import detecting_head
from eql_d2.errors import InputError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"}
MIN_PIXELS = 640  # a smaller picture is enlarged so that its labels can be read


class Predictor(DefaultPredictor):
    """Detectron2's, with this package's checkpointer, which loads classifiers with or without a background row."""

    def __init__(self, cfg):
        """As ``DefaultPredictor.__init__``, which fixes the checkpointer and so is not called."""
        self.cfg = cfg.clone()
        self.model = build_model(self.cfg).eval()
        LongTailCheckpointer(self.model).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
        self.aug = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        self.input_format = cfg.INPUT.FORMAT


def choose(instances: Instances, threshold: float) -> Instances:
    """The best category of each place, of those that score at least ``threshold``."""
    confident = instances[instances.scores >= threshold]
    return confident[best_places(confident.pred_boxes.tensor, confident.scores, len(confident))]


def draw(image: np.ndarray, instances: Instances, names: Sequence[str]) -> np.ndarray:
    """(H, W, 3) uint8 RGB picture, as ``image`` is, of boxes, masks where there are any, names and scores."""
    from detectron2.utils.visualizer import Visualizer  # here, since it imports pyplot

    # A `$` in a name would start a formula.
    metadata = Metadata().set(thing_classes=[name.replace("$", r"\$") for name in names])
    scale = max(1.0, MIN_PIXELS / max(image.shape[:2]))
    return Visualizer(image, metadata, scale=scale).draw_instance_predictions(instances).get_image()


def image_files(inputs: Sequence[str]) -> list[str]:
    """Image files of the given files, folders and glob patterns, each once, in order.

    A file that is named itself is taken whatever its suffix; of a folder and a pattern those that look like images.
    """
    found = {}
    for entry in inputs:
        entry = os.path.expanduser(entry)
        if os.path.isfile(entry):
            matches = [entry]
        else:
            candidates = sorted(glob.glob(os.path.join(entry, "*") if os.path.isdir(entry) else entry, recursive=True))
            matches = [f for f in candidates if Path(f).suffix.lower() in IMAGE_SUFFIXES and os.path.isfile(f)]
        if not matches:
            raise InputError(f"{entry} is no image file, folder with images, or pattern that matches any")
        found.update(dict.fromkeys(matches))
    return list(found)


def output_names(files: Sequence[str]) -> list[str]:
    """A PNG name for each file, all different, also where files of several folders have one name."""
    names: dict[str, None] = {}
    for file in files:
        stem, numbers = Path(file).stem, itertools.count(2)
        name = f"{stem}.png"
        while name in names:
            name = f"{stem}_{next(numbers)}.png"
        names[name] = None
    return list(names)


def read_rgb(file: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB, or an OSError where it cannot be read as an image."""
    try:
        with eight_bits_alone():
            return read_image(file, format="RGB")
    except UnidentifiedImageError as error:
        raise OSError("it is no image that Pillow knows") from error
    except OSError:
        raise
    except Exception as error:  # Pillow: SyntaxError, ValueError, DecompressionBombError, ... for broken files
        raise OSError(f"{type(error).__name__}: {error}") from error


def category_names(cfg) -> list[str] | None:
    """Names of the model's categories, from the datasets of the config; None if no one has as many."""
    num_classes = cfg.MODEL[detecting_head(cfg)].NUM_CLASSES
    for dataset in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        names = MetadataCatalog.get(dataset).get("thing_classes") or _names_by_loading(dataset)
        if names and len(names) == num_classes:
            return list(names)
    return None


def _names_by_loading(dataset: str):
    """Some datasets, MiniLVIS among them, know their names when they are loaded."""
    try:
        DatasetCatalog.get(dataset)
    except (KeyError, OSError, ValueError, AssertionError):
        return None
    return MetadataCatalog.get(dataset).get("thing_classes")
