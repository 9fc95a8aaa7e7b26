"""A picture of ground truth beside predictions, for the images with the rarest objects."""

import logging
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm

from eql_d2.data import ClassFrequencies
from eql_d2.data.letters import GROUP_NAMES
from eql_d2.data.whole_files import make_folder, written_whole
from eql_d2.drawing.panels import GROUP_COLORS, Panels, best_places

logger = logging.getLogger(__name__)


class PredictionPicture(DatasetEvaluator):
    """Draws ground truth beside predictions to ``path``; its results are empty.

    The images are those with the rarest ground-truth categories. At each place the best category is drawn, and as many
    places, best first, as the image has objects: so no score threshold has to be chosen, which rare categories
    would not pass.

    Args:
        dataset_name: a registered dataset with annotations.
        path: PNG to write.
        frequencies: counts of the training set, which rank and colour the categories.
        num_images: how many images to draw.
    """

    def __init__(self, dataset_name: str, path, frequencies: ClassFrequencies, num_images: int = 8):
        self._path = Path(path)
        self._images = rarest_images(DatasetCatalog.get(dataset_name), frequencies.image_count.numpy(), num_images)
        names = MetadataCatalog.get(dataset_name).get("thing_classes")  # some are set by loading
        self._panels = Panels(names, frequencies.groups)
        self.reset()

    def reset(self):
        self._instances = {}

    def process(self, inputs, outputs):
        for image, output in zip(inputs, outputs):
            if image["image_id"] in self._images and "instances" in output:
                self._instances[image["image_id"]] = output["instances"].to("cpu")

    def evaluate(self):
        instances = {k: v for part in comm.gather(self._instances) for k, v in part.items()}
        if comm.is_main_process() and instances:
            self._draw(instances)
            logger.info("Ground truth beside predictions: %s", self._path)

    def _draw(self, instances: dict) -> None:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        # In the order of rarity, whatever order they were predicted in.
        drawn = [image_id for image_id in self._images if image_id in instances]
        rows = -(-len(drawn) // 2)
        figure = Figure(figsize=(17, 4.5 * rows))
        axes = figure.subplots(rows, 4, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for (left, right), image_id in zip(axes.reshape(-1, 2), drawn):
            self._draw_truth(left, self._images[image_id])
            self._draw_predictions(right, self._images[image_id], instances[image_id])
        handles = [Patch(color=GROUP_COLORS[g], label=name) for g, name in GROUP_NAMES.items()]
        figure.legend(handles=handles, loc="lower center", ncols=3, frameon=False, fontsize=12)
        figure.tight_layout(rect=(0, 0.4 / figure.get_figheight(), 1, 1))
        make_folder(self._path.parent)
        with written_whole(self._path, "wb") as file:
            figure.savefig(file, format="png", dpi=80)

    def _draw_truth(self, axis, image: dict) -> None:
        axis.imshow(self._panels.truth(image))
        axis.set_title(f"image {image['image_id']}: ground truth", fontsize=11)

    def _draw_predictions(self, axis, image: dict, instances: Instances) -> None:
        boxes, scores = instances.pred_boxes.tensor, instances.scores
        best = best_places(boxes, scores, len(image["annotations"]))
        axis.imshow(self._panels.predictions(image, boxes[best], scores[best], instances.pred_classes[best]))
        axis.set_title(f"the best {len(best)} of {len(instances)} predictions", fontsize=11)


def rarest_images(dataset_dicts: list, image_count: np.ndarray, num_images: int) -> dict:
    """The images with the rarest objects, each for another category where there are enough.

    Args:
        dataset_dicts: Detectron2's standard format.
        image_count: (K,) training images of each category.

    Returns:
        image id -> dataset dict, rarest first.
    """
    candidates = [
        (image_count[a["category_id"]], a["category_id"], i)
        for i, d in enumerate(dataset_dicts)
        for a in d["annotations"]
    ]
    candidates.sort()
    chosen: dict[object, dict] = {}
    seen = set()
    for new_category_only in (True, False):
        for _, category, i in candidates:
            if len(chosen) < num_images and not (new_category_only and category in seen):
                chosen.setdefault(dataset_dicts[i]["image_id"], dataset_dicts[i])
                seen.add(category)
    return chosen
