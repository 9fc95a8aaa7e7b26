"""The categories of an evaluated dataset, with how often they were seen in training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from eql_d2.errors import InputError, printable
from eql_d2.evaluation.lvis_metrics import GroundTruth

if TYPE_CHECKING:
    from eql_d2.data.frequencies import ClassFrequencies, TailRule
    from eql_d2.evaluation.training_counts import TrainingCounts

# Ends of the bins of training images, included. Rare (at most 10) and common (at most 100) end where bins do.
BIN_ENDS = (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000)


@dataclass(frozen=True)
class Categories:
    """K categories, in ascending order of the dataset's ids, as in ``GroundTruth``."""

    ids: np.ndarray  # (K,)
    index: np.ndarray  # (K,) the model's, -1 for one that it does not know: never trained on, so rare
    names: list  # K str
    groups: str  # K letters of r, c, f; "" if it is not known how frequent they are
    image_count: np.ndarray | None  # (K,) training images
    instance_count: np.ndarray | None  # (K,) training objects
    tail: np.ndarray | None  # (K,) bool
    source: str | None  # of the counts

    @classmethod
    def of(
        cls,
        truth: GroundTruth,
        metadata,
        frequencies: "ClassFrequencies | TrainingCounts | None" = None,
        tail: "TailRule | None" = None,
    ) -> "Categories":
        """
        Args:
            truth: the evaluated dataset; its letters are the groups if every category has one, else those of
            ``frequencies``.
            metadata: the dataset's, from Detectron2's catalog: names, and the model's order of categories.
            frequencies: counts of the training set, if they are known.
            tail: the loss's rule, if it has one.
        """
        ids = truth.category_ids
        mapping = metadata.get("thing_dataset_id_to_contiguous_id") or {i: i - 1 for i in ids.tolist()}
        index = np.array([mapping.get(i, -1) for i in ids.tolist()])
        names = metadata.get("thing_classes")
        names = [names[k] if names and 0 <= k < len(names) else str(i) for i, k in zip(ids.tolist(), index.tolist())]
        names = [printable(str(name)) for name in names]  # they go to tables, logs and files
        groups = "".join(truth.frequency) if all(truth.frequency) else ""
        if frequencies is None:
            return cls(ids, index, names, groups, None, None, None, None)
        if index.max(initial=-1) >= len(frequencies):
            raise InputError(
                f"{frequencies.source} counts {len(frequencies)} categories, but the model's indices go up to "
                f"{index.max()}: give the counts of the set that it was trained on"
            )

        def of_training(values):
            return None if values is None else np.where(index >= 0, np.asarray(values)[index], 0)

        return cls(
            ids=ids,
            index=index,
            names=names,
            groups=groups or "".join(frequencies.groups[k] if k >= 0 else "r" for k in index),
            image_count=of_training(frequencies.image_count),
            instance_count=of_training(frequencies.instance_count),
            tail=None if tail is None else of_training(tail.mask(frequencies)),  # type: ignore[arg-type]
            source=frequencies.source,
        )

    def members(self) -> dict:
        """Letter -> (K,) bool, for each of r, c and f that has a category."""
        letters = np.array(list(self.groups))
        return {letter: letters == letter for letter in "rcf" if letter in self.groups}

    def frequency_bins(self) -> Sequence[tuple]:
        """(lowest count, highest count, (K,) bool) of each bin that has a category; none without counts."""
        if self.image_count is None:
            return []
        ends = [*BIN_ENDS, max(self.image_count.max(), BIN_ENDS[-1] + 1)]
        lows = [0, *(end + 1 for end in ends[:-1])]
        bins = [(low, int(end), (low <= self.image_count) & (self.image_count <= end)) for low, end in zip(lows, ends)]
        return [each for each in bins if each[2].any()]
