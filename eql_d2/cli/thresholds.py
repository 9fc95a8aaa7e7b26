"""Choose for each category the score from which on it counts as detected: that of the largest F1.

    eql-d2 thresholds results.json lvis_v1_val.json --output thresholds.json

prints precision, recall and F1 of thresholds that were chosen on one half of the images, on the other half, and writes
those of all images. MODEL.ROI_BOX_HEAD.THRESHOLDS_FILE thresholds.json then makes a model keep to them: in `eql-d2
demo`, `export` and `train --eval-only`. The results are of any detector, as for `eql-d2 evaluate`.
"""

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", help="results file: a list of image_id, category_id, score, bbox or segmentation")
    parser.add_argument("annotations", help="annotation file of the dataset, in LVIS's or COCO's format")
    parser.add_argument("--output", required=True, metavar="FILE", help="JSON file to write the thresholds to")
    parser.add_argument("--iou-type", choices=("bbox", "segm"), default="bbox", help="boxes (default) or masks")
    parser.add_argument("--seed", type=int, default=0, help="of the halves of the images (default 0)")


def run(args: argparse.Namespace) -> None:
    from eql_d2.data.whole_files import written_whole
    from eql_d2.evaluation.files import Dataset, Evaluated
    from eql_d2.evaluation.thresholds import Outcomes, halves

    dataset = Dataset.load(args.annotations)
    evaluated = Evaluated.load(args.results, dataset, args.iou_type, -1)
    truth, outcomes = dataset.truth, Outcomes.of(evaluated.matching)
    first, second = halves(len(truth.image_ids), args.seed)
    print(table(outcomes.within(second), outcomes.within(first).thresholds(), dataset.categories.members()))
    thresholds = outcomes.thresholds()
    content = {
        "iou": 0.5,
        "iou_type": args.iou_type,
        "results": str(args.results),
        "annotations": str(args.annotations),
        "category_ids": truth.category_ids.tolist(),
        "thresholds": [float(f"{value:.6g}") for value in thresholds],
    }
    with written_whole(args.output) as file:
        json.dump(content, file)
    print(
        f"wrote {args.output}, of all {len(truth.image_ids)} images: MODEL.ROI_BOX_HEAD.THRESHOLDS_FILE {args.output}"
    )


def table(outcomes, chosen, members: dict) -> str:
    """Means over the categories of each group, for the thresholds of the other half, and for one of all categories."""
    import numpy as np
    from tabulate import tabulate

    from eql_d2.evaluation.thresholds import precision_recall_f1

    rows = []
    everything = {"all": np.ones(outcomes.num_classes, dtype=bool), **members}
    for name, thresholds in (("of each category", chosen), ("0.5", np.full(outcomes.num_classes, 0.5))):
        counts = outcomes.counts(thresholds)
        for group, of_group in everything.items():
            values = precision_recall_f1(counts[:, of_group])
            rows.append([name, group, *(100 * value for value in values), int(counts[2, of_group].sum())])
    headers = ["threshold", "categories", "precision %", "recall %", "F1 %", "objects"]
    return tabulate(rows, headers=headers, tablefmt="pipe", floatfmt=".1f")
