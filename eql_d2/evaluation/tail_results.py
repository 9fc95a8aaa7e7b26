"""The numbers of :mod:`eql_d2.evaluation.tail_analysis`, as scalars, as files and as tables of the log."""

import csv
from dataclasses import dataclass
from functools import cached_property
from typing import IO

import numpy as np
from tabulate import tabulate

from eql_d2.data import letters
from eql_d2.evaluation.boundary import by_boundary
from eql_d2.evaluation.calibration_error import MIN_SCORE, calibration
from eql_d2.evaluation.categories import Categories
from eql_d2.evaluation.confusion import Answers, answers
from eql_d2.evaluation.lvis_metrics import (
    IOU_THRESHOLDS,
    RECALL_THRESHOLDS,
    Detections,
    Matching,
    evaluate_lvis,
)

FORMAT = 1  # of the JSON file
NUM_PAIRS = 50  # of confused categories, in the JSON file
NUM_LOGGED = 10  # worst and best categories, in the log
GROUP_NAMES = {"all": "all", **letters.GROUP_NAMES}


def no_formula(text: str) -> str:
    """A cell of a CSV that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


@dataclass(frozen=True)
class TailResults:
    """One task of one dataset with K categories; AP and AR of a category are in [0, 1], and -1 without an object.

    Args:
        matching: of detections with boxes.
        categories: the dataset's.
        most: the highest scores of each category, for fixed AP.
        boundary_ap: add boundary AP, for masks.
    """

    matching: Matching
    categories: Categories
    most: Detections | None = None
    boundary_ap: bool = False

    @cached_property
    def num_objects(self) -> np.ndarray:
        """(K,) that count."""
        return self.matching.truth.num_objects()[:, 0]

    @cached_property
    def answers(self) -> Answers:
        truth = self.matching.truth
        return answers(truth, self.matching.detections, self.matching.max_dets if truth.federated else -1)

    @cached_property
    def outcomes(self) -> tuple:
        """(n,) category in [0, K), score, and hit at IoU 0.5, of the detections that count."""
        index, category, hit = self.matching.outcomes()
        return category, self.matching.detections.score[index], hit

    @cached_property
    def columns(self) -> dict:
        """Name -> (K,) AP or AR, of those that there are."""
        truth, task, curves = self.matching.truth, self.matching.iou_type, self.matching.curves
        columns = {"AP": curves.category_ap(), "AP50": curves.category_ap(iou=0.5), "AR": curves.category_ar()}
        if self.most is not None:
            columns["AP-fixed"] = evaluate_lvis(truth, self.most, task, -1).category_ap()
        if self.boundary_ap and task == "segm":
            columns["AP-boundary"] = by_boundary(self.matching).curves.category_ap()
        return columns

    @cached_property
    def groups(self) -> dict:
        """Letter, or "all" -> (K,) bool."""
        return {"all": np.ones(len(self.categories.ids), dtype=bool), **self.categories.members()}

    @cached_property
    def calibration(self) -> dict:
        """Group -> reliability of its detections' scores."""
        category, score, hit = self.outcomes
        mine = {group: members[category] for group, members in self.groups.items()}
        return {group: calibration(score[of], hit[of]) for group, of in mine.items()}

    @cached_property
    def confusion(self) -> dict:
        """Group -> what its objects are taken for."""
        by_letter = self.categories.members()
        return {group: self.answers.shares(members, by_letter) for group, members in self.groups.items()}

    @cached_property
    def frequency_bins(self) -> list:
        """AP of the categories of each bin of training images."""
        return [
            {
                "min_images": low,
                "max_images": high,
                "categories": int(members.sum()),
                "evaluated": int((self.num_objects[members] > 0).sum()),
                **{name: percent(self.columns[name][members]) for name in ("AP", "AP50", "AR")},
            }
            for low, high, members in self.categories.frequency_bins()
        ]

    def scalars(self) -> dict:
        """What goes beside the standard metrics: name -> percent, nan where there is no object or detection."""
        scalars = {f"AP{g}": percent(self.columns["AP"][of]) for g, of in self.categories.members().items()}
        for name in ("AP-fixed", "AP-boundary"):
            if name in self.columns:
                for group, members in self.groups.items():
                    letter = "" if group == "all" else group
                    scalars[name.replace("AP", f"AP{letter}")] = percent(self.columns[name][members])
        for each in self.frequency_bins:
            if each["evaluated"]:
                scalars[f"AP-images-{each['min_images']}-{each['max_images']}"] = each["AP"]
        scalars |= {f"ECE-{group}": in_percent(value["ece"]) for group, value in self.calibration.items()}
        scalars |= {f"right-{group}": in_percent(value["right"]) for group, value in self.confusion.items()}
        for group in ("r", "c"):
            to_frequent = self.confusion.get(group, {}).get("wrong_by_group", {}).get("f")
            if to_frequent is not None:
                scalars[f"confused-{group}-f"] = 100 * to_frequent
        return scalars

    def write_categories(self, file: IO[str]) -> None:
        """One row a category, in the model's order, as CSV."""
        categories = self.categories
        optional = (categories.tail, categories.image_count, categories.instance_count)
        blank = [""] * len(categories.ids)
        tail, images, instances = (blank if x is None else x.astype(int).tolist() for x in optional)
        columns = {
            "index": categories.index.tolist(),
            "category_id": categories.ids.tolist(),
            "name": [no_formula(name) for name in categories.names],
            "group": list(categories.groups) or blank,
            "tail": tail,
            "train_images": images,
            "train_instances": instances,
            "objects": self.num_objects.tolist(),
            "detections": np.bincount(self.outcomes[0], minlength=len(categories.ids)).tolist(),
        }
        for name in ("AP", "AP50", "AR", "AP-fixed", "AP-boundary"):
            values = self.columns.get(name, np.full(len(categories.ids), -1.0))
            columns[name] = [f"{100 * v:.4f}" if v >= 0 else "" for v in values]
        rows = list(zip(*columns.values()))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows[k] for k in np.argsort(categories.index, kind="stable"))

    def analysis(self, metrics: dict, **header) -> dict:
        """Everything but the table of categories, as a JSON value without nan.

        Args:
            metrics: the scalars of the task, in percent.
            header: what goes before the numbers.
        """
        content = {
            "format": FORMAT,
            **header,
            "metrics": metrics,
            "groups": {group: self._group(members) for group, members in self.groups.items()},
            "frequency_bins": self.frequency_bins,
            "curves": {
                "iou": 0.5,
                "recall": RECALL_THRESHOLDS.tolist(),
                "precision": {group: self._precision(members) for group, members in self.groups.items()},
            },
            "calibration": {"iou": 0.5, "min_score": MIN_SCORE, "groups": self.calibration},
            "confusion": {"iou": 0.5, "groups": self.confusion, "pairs": self._pairs()},
        }
        return without_nan(content)

    def _group(self, members: np.ndarray) -> dict:
        images, instances = self.categories.image_count, self.categories.instance_count
        return {
            "categories": int(members.sum()),
            "evaluated": int((self.num_objects[members] > 0).sum()),
            "objects": int(self.num_objects[members].sum()),
            "train_images": None if images is None else int(images[members].sum()),
            "train_instances": None if instances is None else int(instances[members].sum()),
        }

    def _precision(self, members: np.ndarray) -> list:
        """(R,) precision at IoU 0.5 at each recall, mean over the categories with objects; nan without one."""
        evaluated = members & (self.num_objects > 0)
        at_half = self.matching.curves.precision[np.isclose(IOU_THRESHOLDS, 0.5), :, :, 0][0]
        return at_half[:, evaluated].mean(axis=1).tolist() if evaluated.any() else [np.nan] * len(at_half)

    def _pairs(self) -> list:
        names, groups = self.categories.names, self.categories.groups or [None] * len(self.categories.names)
        return [
            {
                "object": names[category],
                "object_group": groups[category],
                "predicted": names[predicted],
                "predicted_group": groups[predicted],
                "count": count,
            }
            for category, predicted, count in self.answers.pairs(NUM_PAIRS)
        ]

    def tables(self) -> str:
        """For the log: the worst and the best categories, AP by training images, and scores and answers by group."""
        parts = [self._extremes(), self._by_group()]
        if self.frequency_bins:
            parts.append(table(self.frequency_bins))
        return "\n".join(parts)

    def _extremes(self) -> str:
        categories, ap = self.categories, self.columns["AP"]
        evaluated = np.flatnonzero(self.num_objects > 0)
        order = evaluated[np.argsort(ap[evaluated], kind="stable")]
        number = min(NUM_LOGGED, len(order) // 2)
        chosen = {"worst": order[:number], "best": order[::-1][:number]}
        rows = [
            {
                "": which if k == members[0] else "",
                "category": categories.names[k],
                "group": categories.groups[k] if categories.groups else None,
                "train images": None if categories.image_count is None else int(categories.image_count[k]),
                "objects": int(self.num_objects[k]),
                "AP": 100 * ap[k],
                "AR": 100 * self.columns["AR"][k],
            }
            for which, members in chosen.items()
            for k in members
        ]
        return table(rows)

    def _by_group(self) -> str:
        rows = []
        for group, members in self.groups.items():
            reliability, taken = self.calibration[group], self.confusion[group]
            row = {"group": GROUP_NAMES[group], "objects": taken["objects"]}
            row |= {name: percent(values[members]) for name, values in self.columns.items()}
            row |= {"ECE": in_percent(reliability["ece"]), "score - precision": in_percent(reliability["bias"])}
            row |= {f"{answer} %": in_percent(taken[answer]) for answer in ("right", "wrong", "missed")}
            row |= {f"as {GROUP_NAMES[g]} %": in_percent(x) for g, x in taken["wrong_by_group"].items()}
            rows.append(row)
        return table(rows)


def percent(values: np.ndarray) -> float:
    """Mean in percent of those that are not -1; nan if all are."""
    valid = values[values > -1]
    return 100 * float(valid.mean()) if len(valid) else float("nan")


def in_percent(share: float | None) -> float:
    return float("nan") if share is None else 100 * share


def without_nan(value):
    """The same JSON value with null for nan."""
    if isinstance(value, dict):
        return {k: without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_nan(v) for v in value]
    return None if isinstance(value, float) and value != value else value


def table(rows: list) -> str:
    return tabulate(rows, headers="keys", tablefmt="pipe", floatfmt=".1f")
