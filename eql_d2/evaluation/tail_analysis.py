"""Where a detector fails: AP by category and by frequency, fixed and boundary AP, calibration of scores, confusion.

docs/evaluation.md says what the files hold and what the numbers mean.
"""

import json
import logging
import os
from dataclasses import dataclass

from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from eql_d2.data.frequencies import ClassFrequencies, TailRule
from eql_d2.data.whole_files import written_whole
from eql_d2.evaluation.categories import Categories
from eql_d2.evaluation.lvis_metrics import Detections, Matching
from eql_d2.evaluation.tail_results import TailResults

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TailAnalysis:
    """What a detector's evaluation is analysed by, and where the files go.

    Args:
        dataset_name: a registered dataset.
        output_dir: folder for the files; None writes none.
        frequencies: counts of the training set, if they are known.
        tail: the loss's rule, if it has one.
        boundary_ap: add boundary AP, for masks.
    """

    dataset_name: str
    output_dir: str | None = None
    frequencies: ClassFrequencies | None = None
    tail: TailRule | None = None
    boundary_ap: bool = False

    def run(self, matching: Matching, standard: dict, most: Detections | None = None) -> dict:
        """Analyse one task, write its files and log its tables.

        Args:
            matching: of detections with boxes.
            standard: the dataset's own metrics, in percent.
            most: the highest scores of each category, for fixed AP.

        Returns:
            the metrics in percent: the standard ones, unchanged but for APr, APc and APf that are nan, and ours.
        """
        truth, task, metadata = matching.truth, matching.iou_type, MetadataCatalog.get(self.dataset_name)
        categories = Categories.of(truth, metadata, self.frequencies, self.tail)
        results = TailResults(matching, categories, most, self.boundary_ap)
        metrics = results.scalars() | {name: value for name, value in standard.items() if value == value}
        metrics = {**standard, **metrics}  # in the order of the standard ones
        if self.output_dir:
            PathManager.mkdirs(self.output_dir)
            with written_whole(os.path.join(self.output_dir, f"categories_{task}.csv")) as file:
                results.write_categories(file)
            content = results.analysis(
                metrics,
                dataset=self.dataset_name,
                task=task,
                detections_per_image=matching.max_dets if truth.federated else None,
                detections_per_image_and_category=None if truth.federated else matching.max_dets,
                train_counts=categories.source,
                tail_rule=None if self.tail is None else str(self.tail),
            )
            with written_whole(os.path.join(self.output_dir, f"analysis_{task}.json")) as file:
                json.dump(content, file, allow_nan=False)
        logger.info("%s on %s by category, group and training images:\n%s", task, self.dataset_name, results.tables())
        return metrics
