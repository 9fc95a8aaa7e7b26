"""Score results files on an annotation file, in the format of LVIS or COCO, of any detector.

Prints the format's own metrics, and where the tail fails: AP by group and by training images, calibration of scores,
and what objects are taken for. Several results files stand side by side. Needs neither torch nor Detectron2.

  eql-d2 evaluate results.json lvis_v1_val.json --fixed-ap
  eql-d2 evaluate ours.json theirs.json lvis_v1_val.json --image-ids minival.txt --bootstrap 1000 --report page.html
"""

import argparse
import json
import re
import sys
from pathlib import Path

from eql_d2.data.whole_files import make_folder, written_whole
from eql_d2.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "results",
        nargs="+",
        help="results files: JSON lists or lines of image_id, category_id, score, bbox (x, y, width, height in pixels) "
        "or segmentation; .gz, too",
    )
    add("annotations", help="annotation file of the dataset, in LVIS's or COCO's format")
    add("--format", choices=("lvis", "coco"), help="default: LVIS's if all images have neg_category_ids")
    add("--iou-type", choices=("bbox", "segm"), default="bbox", help="boxes (default) or masks")
    add("--max-dets", type=int, metavar="N", help="of an image (LVIS: 300) or image and category (COCO: 100); -1: all")
    add("--fixed-ap", action="store_true", help="add AP of the 10,000 best detections of each category")
    add("--boundary", action="store_true", help="add boundary AP, of masks")
    add(
        "--image-ids",
        metavar="FILE",
        help="only these images: ids or file names one a line, a JSON list, or annotations",
    )
    add(
        "--frequencies",
        metavar="FILE",
        help="training annotations, or a file of `eql-d2 counts`: r, c, f and AP by training images go by these "
        "(default: LVIS's own for LVIS's categories)",
    )
    add(
        "--bootstrap",
        type=int,
        metavar="N",
        help="95 %% intervals of AP and of differences, by N drawings of the images",
    )
    add("--seed", type=int, default=0, help="of the drawings (default 0)")
    add("--max-unknown", type=float, default=0.1, metavar="SHARE", help="of detections with unknown ids (default 0.1)")
    add("--categories", metavar="FILE", help="write a CSV with AP of every category; of several results, one each")
    add("--json", metavar="FILE", help="write all numbers as JSON")
    add("--report", metavar="FILE", help="write an HTML page with figures, which is read offline (extra `report`)")


def run(args: argparse.Namespace) -> None:
    from eql_d2.evaluation.files import Dataset, Evaluated, resampled  # here, so that help stays quick

    check(args)
    dataset = Dataset.load(args.annotations, args.format, args.image_ids, args.frequencies)
    truth = dataset.truth
    print(
        f"{args.annotations}: {dataset.format.upper()} format, {len(truth.image_ids)} images, "
        f"{len(truth.group)} objects, {len(truth.category_ids)} categories"
    )
    evaluated = []
    names = distinct_names(args.results)
    for name, path in zip(names, args.results, strict=True):
        each = Evaluated.load(
            path, dataset, args.iou_type, args.max_dets, args.fixed_ap, args.boundary, args.max_unknown
        )
        for note in each.notes:
            whose = "" if len(names) == 1 or path in note else f"{name}: "
            print(f"warning: {whose}{note}", file=sys.stderr)
        evaluated.append(each)
    print(metrics_table(names, evaluated))
    drawings = None
    if args.bootstrap is not None:
        drawings = resampled(evaluated, args.bootstrap, args.seed)
        print(intervals_table(names, drawings))
    if args.categories:
        write_categories(args.categories, names, evaluated)
    if args.json:
        write_json(args.json, dataset, names, evaluated, drawings)
    if args.report:
        write_report(args.report, names, evaluated, drawings)


def check(args: argparse.Namespace) -> None:
    """What is wrong with the arguments is said before minutes of work."""
    if args.report:
        import eql_d2.report.page  # noqa: F401  (or an error that names the extra)
    if args.bootstrap is not None and args.bootstrap < 2:
        raise InputError(f"--bootstrap needs at least 2 drawings, 1000 are usual; got {args.bootstrap}")
    if args.seed < 0:
        raise InputError(f"--seed must be 0 or more, got {args.seed}")
    if not 0 <= args.max_unknown <= 1:
        raise InputError(f"--max-unknown is a share of the detections, from 0 to 1; got {args.max_unknown}")
    if args.boundary and args.iou_type != "segm":
        raise InputError("--boundary is of masks: evaluate them by --iou-type segm")
    for path in args.results:
        if args.results.count(path) > 1:
            raise InputError(f"{path} is given twice")
    for path in filter(None, (args.categories, args.json, args.report)):
        if Path(path).is_dir():
            raise InputError(f"{path} is a folder: name a file to write")
        make_folder(Path(path).parent)


def distinct_names(paths: list) -> list[str]:
    """The files' names, or their whole paths where two have the same name."""
    names = [Path(path).stem for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def metrics_table(names: list, evaluated: list) -> str:
    from tabulate import tabulate

    rows = [[metric, *(each.metrics.get(metric) for each in evaluated)] for metric in evaluated[0].metrics]
    return tabulate(rows, headers=["%", *names], tablefmt="pipe", floatfmt=".2f")


def intervals_table(names: list, drawings: dict) -> str:
    from tabulate import tabulate

    labelled = list(zip(names, drawings["intervals"], strict=True))
    labelled += [(f"{name} - {names[0]}", each) for name, each in zip(names[1:], drawings["differences"], strict=True)]
    rows = [
        [label, metric, row["value"], row["low"], row["high"]]
        for label, each in labelled
        for metric, row in each.items()
    ]
    headers = ["95 % intervals", "%", "value", "low", "high"]
    return tabulate(rows, headers=headers, tablefmt="pipe", floatfmt=".2f")


def write_categories(path, names: list, evaluated: list) -> None:
    """As CSV; of several results each in a file of its own, with its name before the suffix."""
    path = Path(path)
    for name, each in zip(names, evaluated, strict=True):
        part = re.sub(r"[^\w.-]+", "_", name.removesuffix(".json"))
        own = path if len(names) == 1 else path.with_name(f"{path.stem}.{part}{path.suffix}")
        with written_whole(own) as file:
            each.analysis.write_categories(file)
        print(f"wrote {own}")


def write_json(path, dataset, names: list, evaluated: list, drawings: dict | None) -> None:
    from eql_d2.evaluation.tail_results import without_nan

    first = evaluated[0]
    header = {
        "annotations": dataset.path,
        "annotation_format": dataset.format,
        "images": len(dataset.truth.image_ids),
        "iou_type": first.matching.iou_type,
        "max_dets": first.matching.max_dets,
    }
    results = [
        {"name": name, "file": each.path, "notes": each.notes, "unknown": each.unknown}
        | each.analysis.analysis(each.metrics, train_counts=dataset.categories.source)
        for name, each in zip(names, evaluated, strict=True)
    ]
    content = header | {"results": results} | ({} if drawings is None else {"bootstrap": drawings})
    with written_whole(path) as file:
        json.dump(without_nan(content), file, allow_nan=False)
    print(f"wrote {path}")


def write_report(path, names: list, evaluated: list, drawings: dict | None) -> None:
    from eql_d2.report.page import write_results_report
    from eql_d2.report.results_files import comparison_of

    write_results_report(comparison_of(names, evaluated), path, drawings)
    print(f"wrote {path}")
