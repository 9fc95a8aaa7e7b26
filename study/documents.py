"""The tables of results, written into the documents between `<!-- benchmark NAME -->` and `<!-- end -->`."""

import re
from collections.abc import Callable
from pathlib import Path
from statistics import mean

from tabulate import tabulate

from study.calibrations import calibration_table
from study.digits import digits_table
from study.plan import SIGMOID, SOFTMAX, Row, studies
from study.record import CAPS, GROUPS, RUNS, load
from study.seeds import difference, spread, values

DOCUMENTS = "docs/benchmark.md", "docs/losses.md"
PLACE = re.compile(r"(<!-- benchmark ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
ALL_CAPS = (*map(str, CAPS), "fixed")
Records = dict[str, dict[int, dict]]  # variant -> seed -> record


def write_documents(results: Path, root: Path) -> list[Path]:
    """Fill every place of the documents below ``root`` anew; returns their paths."""
    records = load(results / RUNS)
    return fill([root / name for name in DOCUMENTS], lambda name: table(name, records, results))


def fill(paths: list[Path], table_of: Callable[[str], str]) -> list[Path]:
    """Write the table of each place, by its name, into documents; returns them."""
    for path in paths:
        text = path.read_text()
        path.write_text(PLACE.sub(lambda at: f"{at[1]}\n{table_of(at[2])}\n\n{at[3]}", text))
    return paths


def table(name: str, records: Records, results: Path) -> str:
    """The table of a place, a KeyError for a name that there is none of."""
    of_results = {"digits": digits_table, "calibration": calibration_table}
    return of_results[name](results) if name in of_results else TABLES[name](records)


def markdown(rows: list[dict]) -> str:
    return tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)


def by_ap(records: Records, names: list[str]) -> list[str]:
    """Best first, by mean AP at the usual cap."""
    known = [name for name in names if name in records]
    return sorted(known, key=lambda name: -mean(values(records[name], "300", "AP").values()))


def losses_of(records: Records) -> list[str]:
    return by_ap(records, [row.variant.name for row in studies()["losses"]])


def averages(records: dict[int, dict], table: str = "AP") -> dict[str, object]:
    """The number of seeds, and mean and spread of each group's AP at the usual cap."""
    return {"seeds": len(records)} | {metric: spread(values(records, "300", metric, table)) for metric in GROUPS}


# ---- the tables: functions of the records ----


def losses_table(records: Records) -> str:
    rows = []
    for name in losses_of(records):
        of_loss = records[name]
        row = {"loss": f"`{name}`"} | averages(of_loss)
        rows.append(row | {"s / iteration": f"{min(r['seconds_per_iteration'] for r in of_loss.values()):.3f}"})
    return markdown(rows)


def caps_table(records: Records) -> str:
    rows = []
    for name in losses_of(records):
        cells = {
            f"{metric}, {cap}": f"{mean(values(records[name], cap, metric).values()):.1f}"
            for metric in ("AP", "APr")
            for cap in ALL_CAPS
        }
        rows.append({"loss": f"`{name}`"} | cells)
    return markdown(rows)


def differences_table(records: Records) -> str:
    rows = []
    for name in losses_of(records):
        row = {"loss": f"`{name}`"}
        for baseline, short in ((SIGMOID, "sigmoid"), (SOFTMAX, "softmax")):
            for metric, cap in (("AP", "300"), ("APr", "300"), ("APr", "fixed")):
                of_baseline = values(records.get(baseline, {}), cap, metric)
                label = f"{metric} − {short}'s, {cap}"
                row[label] = "" if name == baseline else difference(values(records[name], cap, metric), of_baseline)
        rows.append(row)
    return markdown(rows)


def gains_table(records: Records) -> str:
    sigmoid = records.get(SIGMOID, {})
    rows = []
    for name in losses_of(records):
        of_loss = records[name]
        row = {"loss": f"`{name}`"} | averages(of_loss)
        for cap in ("300", "25", "fixed"):
            change = difference(values(of_loss, cap, "APr"), values(sigmoid, cap, "APr"))
            row[f"APr − sigmoid's, {cap}"] = "" if name == SIGMOID else change
        rows.append(row)
    return markdown(rows)


def mechanism_table(records: Records) -> str:
    rows = []
    for name in losses_of(records):
        of_loss = records[name].values()
        row = {"loss": f"`{name}`"}
        for letter, group in (("r", "rare"), ("c", "common"), ("f", "frequent")):
            row[f"g+/g-, {group}"] = f"{mean(gradient_ratio(r, letter) for r in of_loss):.2f}"
        for label, key in (("norm r / f", "weight_norm"), ("score r", "score")):
            row[label] = f"{mean(balance(r, key) for r in of_loss):.2f}"
        for key in ("right-r", "confused-r-f", "ECE-r", "ECE-f"):
            row[key] = f"{mean(r['analysis'][key] for r in of_loss):.0f}"
        rows.append(row)
    return markdown(rows)


def balance(record: dict, key: str) -> float:
    """The last value of a curve for rare categories; of weight norms its ratio to that of the frequent."""
    curves = record["balance"]
    rare = curves[f"{key}_rare"]
    return rare / curves[f"{key}_frequent"] if key == "weight_norm" else rare


def gradient_ratio(record: dict, letter: str) -> float:
    """Positive over negative gradient of a group's classifier rows, each summed over the training."""
    categories = record["categories"]
    members = [i for i, group in enumerate(categories["group"]) if group == letter]
    return sum(categories["positive"][i] for i in members) / sum(categories["negative"][i] for i in members)


def study_table(study: str) -> Callable[[Records], str]:
    def of_study(records: Records) -> str:
        return markdown([study_row(row, records) for row in studies()[study] if row.variant.name in records])

    return of_study


def study_row(row: Row, records: Records) -> dict:
    of_variant, of_baseline = records[row.variant.name], records.get(row.baseline, {})
    cells = {"variant": f"`{row.variant.name}`"} | averages(of_variant)
    cells["compared with"] = f"`{row.baseline}`" if row.baseline else ""
    for metric, cap in (("AP", "300"), *(("APr", cap) for cap in ALL_CAPS)):
        change = difference(values(of_variant, cap, metric), values(of_baseline, cap, metric))
        cells[f"{metric}, {cap}"] = change
    return cells


def masks_table(records: Records) -> str:
    """Mask AP; the study's other table is of boxes."""
    rows = []
    for variant, baseline in studies()["masks"]:
        of_variant = records.get(variant.name, {})
        if any(record["AP-segm"] for record in of_variant.values()):
            cells = {"variant": f"`{variant.name}`"} | averages(of_variant, "AP-segm")
            of_baseline = values(records.get(baseline, {}), "300", "APr", "AP-segm")
            cells["APr − sigmoid's"] = difference(values(of_variant, "300", "APr", "AP-segm"), of_baseline)
            rows.append(cells)
    return markdown(rows)


def tail_table(records: Records) -> str:
    """The study of lambda, with the tail ratio TR that each choice gives."""
    rows = []
    for row in studies()["tail"]:
        of_variant = records.get(row.variant.name)
        if of_variant:
            categories, ratio = mean_tail(of_variant)
            tail = {"tail categories": f"{categories:.0f}", "TR, %": f"{100 * ratio:.1f}"}
            cells = study_row(row, records)
            rows.append({"variant": cells.pop("variant"), **tail, **cells})
    return markdown(rows)


def mean_tail(of_variant: dict[int, dict]) -> tuple:
    """Number of tail categories, and TR, their share of all objects (Eq. 5 of the EQL paper), mean over seeds."""
    pairs = []
    for record in of_variant.values():
        images, instances = record["categories"]["images"], record["categories"]["instances"]
        of_tail = [n for i, n in zip(images, instances) if i <= tail_limit(record)]
        pairs.append((len(of_tail), sum(of_tail) / sum(instances)))
    return tuple(mean(column) for column in zip(*pairs))


def tail_limit(record: dict) -> int:
    """The most images that a category of the loss's tail has; -1 without a tail."""
    rule = record["tail"]
    if rule is None:
        return -1
    limits = {"groups 'r'": 10, "groups 'rc'": 100}
    return limits[rule] if rule in limits else int(rule.removeprefix("image count <= "))


TABLES: dict[str, Callable[[Records], str]] = {
    "gains": gains_table,
    "losses": losses_table,
    "caps": caps_table,
    "differences": differences_table,
    "mechanism": mechanism_table,
    "tail": tail_table,
    "mask-AP": masks_table,
    **{study: study_table(study) for study in studies() if study not in ("losses", "tail")},
}
