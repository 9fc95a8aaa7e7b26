"""One image with labelled boxes in the colours of their frequency groups, as pixels: ground truth, or predictions."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from torchvision.ops import nms

from eql_d2.drawing.names import drawable

GROUP_COLORS = {"r": "#ff3b30", "c": "#ffb000", "f": "#35a7ff"}  # rare, common, frequent
NO_GROUP_COLOR = "#7ed957"
PANEL_PIXELS = 480  # longer side of a panel
FONT_SIZE = 10
NAME_CHARACTERS = 18


class Panels:
    """Draws images of a dataset.

    Args:
        names: of the K categories; None labels boxes by their index.
        groups: K letters r, c, f; None draws all boxes in one colour.
        pixels: longer side of a panel.
    """

    def __init__(self, names: Sequence[str] | None, groups: Sequence[str] | None, pixels: int = PANEL_PIXELS):
        self._names = drawable(names) if names else None
        self._groups, self._pixels = groups, pixels

    def truth(self, image: dict) -> np.ndarray:
        """(H, W, 3) uint8 RGB: the annotations of an image in Detectron2's standard format."""
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in image["annotations"]]
        return self._draw(image["file_name"], boxes, [a["category_id"] for a in image["annotations"]])

    def predictions(self, image: dict, boxes: torch.Tensor, scores: torch.Tensor, classes: torch.Tensor) -> np.ndarray:
        """(H, W, 3) uint8 RGB: boxes (n, 4) x0, y0, x1, y1 in pixels with scores (n,) and class indices (n,)."""
        return self._draw(image["file_name"], boxes.tolist(), classes.tolist(), scores.tolist())

    def _draw(self, file_name: str, boxes, classes, scores=None) -> np.ndarray:
        from detectron2.utils.visualizer import Visualizer  # here, since it imports pyplot

        pixels = read_image(file_name, format="RGB")
        scale = self._pixels / max(pixels.shape[:2])
        visualizer = Visualizer(pixels, scale=scale)
        for i, (box, category) in enumerate(zip(boxes, classes)):
            name = self._names[category] if self._names else str(category)
            label = name[:NAME_CHARACTERS] if scores is None else f"{name[: NAME_CHARACTERS - 4]} {scores[i]:.2g}"
            color = GROUP_COLORS.get(self._groups[category], NO_GROUP_COLOR) if self._groups else NO_GROUP_COLOR
            visualizer.draw_box(box, alpha=1.0, edge_color=color)
            visualizer.draw_text(
                label.replace("$", r"\$"),  # matplotlib sets what is between two $ as a formula
                box[:2],
                color=color,
                font_size=FONT_SIZE / scale,
                horizontal_alignment="left",
            )
        return visualizer.output.get_image()


def best_places(boxes: torch.Tensor, scores: torch.Tensor, limit: int) -> torch.Tensor:
    """Indices of at most ``limit`` detections, best first: at each place, of all categories, the best one."""
    return nms(boxes, scores, 0.5)[:limit]
