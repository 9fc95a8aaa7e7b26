"""Does a 95 % interval of AP hold the true AP in 95 % of the cases? Simulated detectors, whose true AP is known.

    python -m study.interval_coverage --images 500 --trials 200 --drawings 300

A population of images has categories of falling frequency; two detectors find objects with noise and invent others.
Many validation sets are drawn from it, and an interval is made of each. There are two truths that it can be held
against: AP of a huge set, and the mean AP of sets of this size, which is higher: precision's highest value to the right
is taken at every recall, and of few objects that is a lucky one. Three intervals: the quantiles of the drawings
(percentile), the same moved so that their mean is the set's AP (centred), and mirrored at it (basic). The images are
drawn alone, as `eql-d2 evaluate --bootstrap` does, or within strata: an image is in that of the rarest category that it
has, so that each category keeps about its number of images. A second table has single categories, by the number of
images that they are in.
"""

import argparse

import numpy as np

from eql_d2.evaluation.intervals import WeightedAP, bootstrap, group_means
from eql_d2.evaluation.lvis_metrics import Detections, GroundTruth, match_lvis

K = 60  # categories
OBJECTS = 6  # of an image
INVENTED = 10  # false detections of an image
DETECTORS = {"A": 0.8, "B": 1.0}  # noise of their scores


def sample(num_images: int, rng) -> tuple[GroundTruth, list[Detections]]:
    """A set of images, and the two detectors' detections."""
    share = 1 / np.arange(1, K + 1) ** 1.2
    share /= share.sum()
    category = rng.choice(K, (num_images, OBJECTS), p=share)
    box = np.concatenate(
        [rng.uniform(0, 300, (num_images, OBJECTS, 2)), rng.uniform(30, 100, (num_images, OBJECTS, 2))], 2
    )
    negative = rng.choice(K, (num_images, 8))
    images = [
        {"id": i, "neg_category_ids": np.setdiff1d(n, c).tolist(), "not_exhaustive_category_ids": []}
        for i, (n, c) in enumerate(zip(negative, category, strict=True))
    ]
    annotations = [
        {"id": i * OBJECTS + j + 1, "image_id": i, "category_id": int(category[i, j]), "bbox": b, "area": b[2] * b[3]}
        for i, boxes in enumerate(box.tolist())
        for j, b in enumerate(boxes)
    ]
    categories = [{"id": k, "frequency": "fcr"[k * 3 // K]} for k in range(K)]
    truth = GroundTruth.load({"images": images, "annotations": annotations, "categories": categories})
    return truth, [detect(category, box, negative, noise, rng) for noise in DETECTORS.values()]


def detect(category, box, negative, noise: float, rng) -> Detections:
    num_images = len(category)
    image = np.repeat(np.arange(num_images), OBJECTS)
    found = rng.uniform(size=len(image)) < 0.85
    true = box.reshape(-1, 4)[found]
    moved = true + rng.normal(0, 0.07, true.shape) * np.tile(true[:, 2:], 2)
    moved[:, 2:] = np.maximum(moved[:, 2:], 1)
    where = np.repeat(np.arange(num_images), INVENTED)
    named = np.concatenate([category, negative], axis=1)
    false_category = named[where, rng.integers(0, named.shape[1], len(where))]
    false = np.concatenate([rng.uniform(0, 300, (len(where), 2)), rng.uniform(30, 100, (len(where), 2))], axis=1)
    score = np.concatenate([rng.normal(1, noise, found.sum()), rng.normal(0, noise, len(where))])
    return Detections(
        image_id=np.concatenate([image[found], where]),
        category_id=np.concatenate([category.reshape(-1)[found], false_category]),
        score=1 / (1 + np.exp(-score)),
        box=np.concatenate([moved, false]),
    )


def bootstrap_within(detectors: list[WeightedAP], groups: dict, num_drawings: int, seed: int, stratum) -> dict:
    """As `bootstrap`, but an image (I,) is replaced by one of its own stratum."""
    rng = np.random.default_rng(seed)
    order = np.argsort(stratum, kind="stable")
    size = np.bincount(stratum)[stratum[order]]
    start = np.searchsorted(stratum[order], stratum[order])
    drawn: dict = {name: np.empty((num_drawings, len(detectors))) for name in groups}
    for row in range(num_drawings):
        weights = np.bincount(order[rng.integers(start, start + size)], minlength=len(stratum))
        for column, detector in enumerate(detectors):
            for name, value in group_means(detector(weights), groups).items():
                drawn[name][row, column] = value
    return drawn


def presence(truth: GroundTruth) -> np.ndarray:
    """(I, K) bool, whether an image has an object of the category."""
    present = np.zeros((len(truth.image_ids), K), dtype=bool)
    present.reshape(-1)[truth.group] = True
    return present


def rarest(present: np.ndarray) -> np.ndarray:
    """(I,) the category of each image that the fewest images have."""
    return np.where(present, present.sum(axis=0), len(present) + 1).argmin(axis=1)


def quantities(values: dict) -> dict:
    """Group -> (..., 2) AP of the detectors, to name -> (...,) what an interval is made of."""
    names = {"all": "AP", "r": "APr"}
    single = {names[g]: values[g][..., 0] for g in names}
    return single | {f"{names[g]} of B - A": values[g][..., 1] - values[g][..., 0] for g in names}


def print_table(headers: list[str], rows: list) -> None:
    for row in (headers, ["---"] * len(headers), *rows):
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--drawings", type=int, default=300)
    parser.add_argument("--population", type=int, default=20_000, help="images of the huge set")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    groups = {"all": np.ones(K, dtype=bool), "r": np.arange(K) * 3 // K == 2}
    groups |= {k: np.arange(K) == k for k in range(K)}

    def ap(truth, detections) -> dict:
        means = [group_means(match_lvis(truth, d).curves.category_ap(), groups) for d in detections]
        return {g: np.array([m[g] for m in means]) for g in groups}

    huge = quantities(ap(*sample(args.population, rng)))
    values, num_images, drawn = [], [], {"images": [], "within presence": []}
    for trial in range(args.trials):
        truth, detections = sample(args.images, rng)
        present = presence(truth)
        values.append(ap(truth, detections))
        num_images.append(present.sum(axis=0))
        detectors = [WeightedAP(match_lvis(truth, d)) for d in detections]
        drawn["images"].append(bootstrap(detectors, groups, args.drawings, trial))
        drawn["within presence"].append(bootstrap_within(detectors, groups, args.drawings, trial, rarest(present)))
    headers = ["", f"AP of {args.population} images", f"mean AP of {args.images}", "drawn", "interval"]
    rows = [row for by, d in drawn.items() for row in coverage(huge, list(map(quantities, values)), by, d)]
    print_table([*headers, "holds the huge set's", "holds the mean", "width"], sorted(rows, key=lambda row: row[0]))
    rows = [row for by, d in drawn.items() for row in coverage_by_images(values, np.array(num_images), by, d)]
    print_table(["images of a category", "drawn", "sets and categories", "holds the mean", "width 0"], rows)


def intervals_of(value: np.ndarray, drawn: list[np.ndarray]) -> dict:
    """Kind -> (start, end) of each set's interval."""
    low, high = np.array([np.nanquantile(d, [0.025, 0.975]) for d in drawn]).T
    mean = np.array([np.nanmean(d) for d in drawn])
    return {
        "percentile": (low, high),
        "centred": (low - mean + value, high - mean + value),
        "basic": (2 * value - high, 2 * value - low),
    }


def coverage(huge: dict, values: list[dict], by: str, drawn: list[dict]) -> list:
    """A row for each quantity and kind of interval."""
    rows = []
    drawn = list(map(quantities, drawn))
    for name in huge:
        value = np.array([v[name] for v in values])
        for kind, (start, end) in intervals_of(value, [d[name] for d in drawn]).items():
            holds = [f"{100 * ((start <= t) & (t <= end)).mean():.1f} %" for t in (huge[name], value.mean())]
            truths = f"{100 * huge[name]:.2f}", f"{100 * value.mean():.2f}"
            rows.append([name, *truths, by, kind, *holds, f"{100 * (end - start).mean():.2f}"])
    return rows


def coverage_by_images(values: list[dict], num_images: np.ndarray, by: str, drawn: list[dict]) -> list:
    """A row for some numbers of images: detector A's AP of single categories that are in so many of a set's images.

    The truth is the category's mean AP in all sets that have it.
    """
    held: dict = {name: [] for name in ("1", "2 to 3", "4 to 10", "11 and more")}
    flat: dict = {name: [] for name in held}
    for k in range(K):
        sets = np.flatnonzero(num_images[:, k])
        if not len(sets):
            continue
        value = np.array([values[i][k][0] for i in sets])
        start, end = intervals_of(value, [drawn[i][k][:, 0] for i in sets])["centred"]
        place = np.searchsorted([1, 3, 10], num_images[sets, k])
        for which, name in enumerate(held):
            held[name] += ((start <= value.mean()) & (value.mean() <= end))[place == which].tolist()
            flat[name] += (end - start < 1e-9)[place == which].tolist()
    return [
        [name, by, len(h), f"{100 * np.mean(h):.1f} %", f"{100 * np.mean(flat[name]):.1f} %"]
        for name, h in held.items()
    ]


if __name__ == "__main__":
    main()
