"""Images with rare objects: ground truth beside the predictions of each configuration, embedded in the page."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from eql_d2.data.registration import register_datasets
from eql_d2.drawing.panels import Panels, best_places
from eql_d2.drawing.picture import rarest_images
from eql_d2.errors import InputError
from eql_d2.evaluation.run_folder import section
from eql_d2.evaluation.saved_predictions import SavedDetections, load_dataset, read_detections
from eql_d2.report.runs import Comparison

PIXELS = 400  # longer side of a panel
JPEG_QUALITY = 80


@dataclass(frozen=True)
class Panel:
    """One picture with what it shows, in words for who cannot see it."""

    title: str
    description: str
    source: str  # data: URL


@dataclass(frozen=True)
class Example:
    title: str
    panels: list[Panel]


@dataclass(frozen=True)
class Examples:
    """Without examples, `missing` says why."""

    examples: list[Example] = field(default_factory=list)
    missing: str | None = None
    notes: list[str] = field(default_factory=list)


def rare_examples(comparison: Comparison, num_images: int = 6, progress: Callable = iter) -> Examples:
    """The images of the test set with the rarest objects, as the first run of each configuration sees them."""
    try:
        register_datasets(section(comparison.runs[0].config, "DATASETS").get("REGISTER", ()))
        dicts, names = load_dataset(comparison.dataset)
        images = rarest_images(dicts, image_counts(comparison), num_images)
    except ValueError as error:
        return Examples(missing=f"No image can be drawn: {error}.")
    detections, notes = {}, []
    for configuration in comparison.configurations:
        try:
            detections[configuration.label] = read_detections(configuration.runs[0].inference_folder, images)
        except ValueError as error:
            notes.append(f"{configuration.label}: {error}")
    groups = [row["group"] for row in comparison.categories.values()]
    panels = Panels(names, groups, PIXELS)
    examples = []
    for image_id, image in progress(list(images.items())):
        of_image = {label: found[image_id] for label, found in detections.items() if image_id in found}
        try:
            examples.append(_example(image, of_image, panels, names))
        except OSError as error:
            notes.append(f"image {image_id} cannot be read: {error}")
    missing = None if examples else "No image could be drawn."
    return Examples(examples, missing, notes)


def image_counts(comparison: Comparison) -> np.ndarray:
    """(K,) training images of each category, which rank the images."""
    rows = comparison.categories.values()
    if not rows or any(row["train_images"] is None for row in rows):
        raise InputError("the evaluation's files have no counts of training images, by which rare objects are found")
    return np.array([row["train_images"] for row in rows])


def _example(image: dict, detections: dict[str, SavedDetections], panels: Panels, names: list[str]) -> Example:
    objects = [names[a["category_id"]] for a in image["annotations"]]
    drawn = [Panel("ground truth", f"Objects: {', '.join(objects)}", data_url(panels.truth(image)))]
    for label, found in detections.items():
        best = best_places(found.boxes, found.scores, len(objects))
        boxes, scores, classes = (column[best] for column in found)
        words = ", ".join(f"{names[c]} {s:.2f}" for c, s in zip(classes.tolist(), scores.tolist()))
        pixels = panels.predictions(image, boxes, scores, classes)
        drawn.append(Panel(label, f"Predictions: {words or 'none'}", data_url(pixels)))
    return Example(f"Image {image['image_id']}", drawn)


def data_url(pixels: np.ndarray) -> str:
    """(H, W, 3) uint8 RGB as a JPEG in a data: URL."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
