"""What training samplers show of a long tail, as tables."""

import csv

from tabulate import tabulate

from eql_d2.data.exposure import Exposure
from eql_d2.data.letters import GROUP_NAMES


def describe_exposure(exposures: dict[str, Exposure], groups: str) -> str:
    """A row for each sampler and group of categories, beside the first sampler, which shows every image once.

    Args:
        exposures: name of a sampler -> what it shows.
        groups: letter of each category.
    """
    first = next(iter(exposures.values()))
    rows = []
    for name, exposure in exposures.items():
        for letter, group in GROUP_NAMES.items():
            members = [i for i, of in enumerate(groups) if of == letter]
            if not members:
                continue
            images, objects = exposure.images[members], exposure.objects[members]
            seen = first.images[members] > 0
            times = (images[seen] / first.images[members][seen]).tolist()
            rows.append(
                {
                    "sampler": name,
                    "epoch": f"{exposure.epoch:,.0f}",
                    "group": f"{group} ({len(members)})",
                    "images of a category": f"{images.mean():,.1f}",
                    "objects of a category": f"{objects.mean():,.1f}",
                    "share of objects": f"{objects.sum() / exposure.objects.sum():.2%}",
                    "images, times none": f"{sum(times) / len(times):.2f}" if times else "",
                }
            )
    return tabulate(rows, headers="keys", tablefmt="pipe", disable_numparse=True)


def write_categories(file, exposures: dict[str, Exposure], groups: str) -> None:
    """CSV with a row a category: its group, and by each sampler the images and objects of an epoch."""
    writer = csv.writer(file)
    writer.writerow(["category", "group", *(f"{of} {name}" for name in exposures for of in ("images", "objects"))])
    for category, group in enumerate(groups):
        numbers = [float(v[category]) for e in exposures.values() for v in (e.images, e.objects)]
        writer.writerow([category, group, *(f"{n:.6g}" for n in numbers)])
