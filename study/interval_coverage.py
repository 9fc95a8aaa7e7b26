"""Does a 95 % interval of AP hold the true AP in 95 % of the cases? Simulated detectors, whose true AP is known.

    python -m study.interval_coverage --images 500 --trials 200 --drawings 300

A population of images has categories of falling frequency; two detectors find objects with noise and invent others.
Many validation sets are drawn from it, and an interval is made of each. There are two truths that it can be held
against: AP of a huge set, and the mean AP of sets of this size, which is higher: precision's highest value to the right
is taken at every recall, and of few objects that is a lucky one. Three intervals: the quantiles of the drawings
(percentile), the same moved so that their mean is the set's AP (centred), and mirrored at it (basic).
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


def quantities(values: dict) -> dict:
    """Group -> (..., 2) AP of the detectors, to name -> (...,) what an interval is made of."""
    names = {"all": "AP", "r": "APr"}
    single = {names[g]: v[..., 0] for g, v in values.items()}
    return single | {f"{names[g]} of B - A": v[..., 1] - v[..., 0] for g, v in values.items()}


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

    def ap(truth, detections):
        means = [group_means(match_lvis(truth, d).curves.category_ap(), groups) for d in detections]
        return quantities({g: np.array([m[g] for m in means]) for g in groups})

    huge = ap(*sample(args.population, rng))
    values, drawn = [], []
    for trial in range(args.trials):
        truth, detections = sample(args.images, rng)
        values.append(ap(truth, detections))
        detectors = [WeightedAP(match_lvis(truth, d)) for d in detections]
        drawn.append(quantities(bootstrap(detectors, groups, args.drawings, seed=trial)))
    headers = ["", f"AP of {args.population} images", f"mean AP of {args.images}", "interval"]
    print("| " + " | ".join([*headers, "holds the huge set's", "holds the mean", "width"]) + " |")
    print("|---|---|---|---|---|---|---|")
    for name in huge:
        value = np.array([v[name] for v in values])
        low, high = np.array([np.nanquantile(d[name], [0.025, 0.975]) for d in drawn]).T
        mean = np.array([np.nanmean(d[name]) for d in drawn])
        intervals = {
            "percentile": (low, high),
            "centred": (low - mean + value, high - mean + value),
            "basic": (2 * value - high, 2 * value - low),
        }
        for kind, (start, end) in intervals.items():
            holds = [100 * ((start <= t) & (t <= end)).mean() for t in (huge[name], value.mean())]
            truths = f"{100 * huge[name]:.2f} | {100 * value.mean():.2f}"
            shares = f"{holds[0]:.1f} % | {holds[1]:.1f} %"
            print(f"| {name} | {truths} | {kind} | {shares} | {100 * (end - start).mean():.2f} |")


if __name__ == "__main__":
    main()
