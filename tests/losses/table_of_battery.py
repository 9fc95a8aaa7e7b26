"""The table of docs/losses.md: what every loss does with torch as it is, as the tests found it.

python -m pytest -m "slow or not slow" tests/losses/test_torch.py tests/slow/test_compiled_losses.py --junitxml b.xml
python tests/losses/table_of_battery.py b.xml
"""

import sys
from collections import defaultdict
from xml.etree import ElementTree

from tabulate import tabulate

from eql_d2.losses import CLS_LOSS_REGISTRY

COLUMNS = {
    "test_wrong_labels_are_refused": "labels checked",
    "test_in_a_compiled_step": "compilations of 20 steps",
    "test_grad_of_torch_func": "func.grad",
    "test_vmap": "vmap",
    "test_activation_checkpointing_is_right_or_refused": "checkpoint",
    "test_it_is_made_without_data": "meta",
    "test_it_is_copied_pickled_averaged_and_converted": "AveragedModel",
}


def result(case: ElementTree.Element) -> str:
    """What a test recorded of its loss, else whether it passed."""
    if any(case.find(bad) is not None for bad in ("failure", "error", "skipped")):
        return "NO"
    recorded = case.find("properties/property[@name='result']")
    return "yes" if recorded is None else recorded.get("value", "")


def main(file: str) -> None:
    cells = defaultdict(set)
    for case in ElementTree.parse(file).iter("testcase"):
        test, _, parameters = case.get("name", "").partition("[")
        if test in COLUMNS and "late " not in parameters:
            (loss,) = (name for name, _ in CLS_LOSS_REGISTRY if name in parameters.rstrip("]").split("-"))
            cells[loss, test].add(result(case))
    rows = [
        [f"`{name}`", *("; ".join(sorted(cells.get((name, test), {"not run"}))) for test in COLUMNS)]
        for name, _ in sorted(CLS_LOSS_REGISTRY)
    ]
    print(tabulate(rows, ["loss", *COLUMNS.values()], tablefmt="github"))


if __name__ == "__main__":
    main(sys.argv[1])
