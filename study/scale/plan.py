"""What is trained on `mini_lvis_1203`, and what it is held against; written before any run of an untouched seed."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from eql_d2 import CLS_LOSS_REGISTRY
from eql_d2.mini_lvis.lvis_scale import MiniLVIS1203Spec
from study.plan import places, registered

CONFIG = Path(__file__).parents[2] / "configs" / "MiniLVIS" / "Base-MiniLVIS-1203.yaml"
HEAD = "MODEL.ROI_BOX_HEAD"
LOSS = f"{HEAD}.CLS_LOSS"
SOFTMAX, RFS = "softmax", "RFS"
SHORTENED = "-third"  # ends the name of a method with a third of its iterations

# A seed is that of the data and of the training. The set may be tuned on the first. The others are reported; whatever
# is changed after a result of one of them was seen makes it one that was looked at, and another takes its place.
TUNING_SEED, SEEDS = 9, (0, 1, 2)
ITERATIONS = 6000
# As in mmdetection, from which most published figures come, a schedule is so many epochs; with repeat factors an epoch
# has 1.77 times as many images here (the mean factor of seed 0).
RFS_ITERATIONS = round(1.77 * ITERATIONS)


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Args:
        name: unique; letters that a folder's name may have.
        overrides: of Base-MiniLVIS-1203.yaml, config keys and values.
        first_stage: the method from whose weights, of the same seed, it starts.
        scores_only: nothing is trained; the first stage is evaluated with the overrides.
    """

    name: str
    overrides: tuple = ()
    first_stage: str | None = None
    scores_only: bool = False

    def but(self, name: str, *overrides, **changes) -> "Method":
        return replace(self, name=name, overrides=self.overrides + overrides, **changes)

    def arguments(self, seed: int, datasets: Path, output: Path) -> list[str]:
        """Those of tools/train_net.py for ``<output>/<name>/<seed>``, whose data are made in ``datasets`` first."""
        data = registered(MiniLVIS1203Spec(seed=seed), datasets / f"mini_lvis_1203_seed_{seed}")
        overrides = [*self.overrides, *data, *places(self, seed, output)]
        how = "--eval-only" if self.scores_only else "--resume"
        return ["--config-file", str(CONFIG), how, *map(str, overrides)]


# What a loss needs beside its name, as in its file in configs/LVISv1; iterations in parts of the training.
COSINE = (f"{HEAD}.CLS_NORM.TEMPERATURE", 20.0)
OF_A_LOSS = {
    "ClassBalancedLoss": (f"{LOSS}.ClassBalancedLoss.BETA", 0.9),
    "EffectiveClassMarginLoss": (*COSINE, "SOLVER.WARMUP_ITERS", ITERATIONS // 9),
    "InfluenceBalancedLoss": (f"{LOSS}.START_ITER", ITERATIONS // 2),
    "LDAMLoss": (
        *(f"{HEAD}.CLS_NORM.TEMPERATURE", 1.0, f"{HEAD}.CLS_NORM.BIAS", False),
        *(f"{LOSS}.LDAMLoss.REWEIGHT_ITER", ITERATIONS * 4 // 5),
    ),
    "SeesawLoss": COSINE,
    "VectorScalingLoss": (f"{LOSS}.VectorScalingLoss.GAMMA", 0.1),
    "WeightedCrossEntropy": (
        *(f"{LOSS}.WeightedCrossEntropy.POWER", 0.5, f"{LOSS}.WeightedCrossEntropy.BACKGROUND_WEIGHT", 0.1),
        *(f"{LOSS}.WeightedCrossEntropy.NORMALIZE_BY", "weights"),
    ),
}
SHORT = {  # of the losses that have published figures
    "SoftmaxCrossEntropy": SOFTMAX,
    "SigmoidCrossEntropy": "sigmoid",
    "EqualizationLoss": "EQL",
    "EqualizationLossV2": "EQLv2",
    "SeesawLoss": "Seesaw",
}
BOX_HEAD = ("MODEL.FREEZE", ["backbone", "proposal_generator", "roi_heads.box_head"])
CLASSES_ALIKE = ("DATALOADER.SAMPLER_TRAIN", "ClassAwareSampler")


def with_loss(name: str) -> Method:
    return Method(SHORT.get(name, name), (f"{LOSS}.NAME", name, *OF_A_LOSS.get(name, ())))


def with_repeat_factors(method: Method, name: str) -> Method:
    """Images of categories with fewer than 100 are repeated, as by LVIS's threshold of 0.001, for as many epochs."""
    threshold = 100 / MiniLVIS1203Spec().num_train_images
    sampler = ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", threshold)
    return method.but(name, *sampler, "SOLVER.MAX_ITER", RFS_ITERATIONS)


def second_stages(softmax: Method) -> Iterator[Method]:
    """As in configs/LVISv1/stage2_*.yaml: on a softmax model, with the features as they are."""
    new = ("MODEL.NEW_CLASSIFIER", True)
    yield softmax.but("cRT", *BOX_HEAD, *new, *CLASSES_ALIKE, first_stage=SOFTMAX)
    frozen = ("MODEL.FREEZE", [*BOX_HEAD[1], "*.cls_score", "*.bbox_pred"])
    yield softmax.but("LWS", *frozen, f"{HEAD}.CLS_SCALE", True, *CLASSES_ALIKE, first_stage=SOFTMAX)
    yield Method("BAGS", (f"{LOSS}.NAME", "BalancedGroupSoftmaxLoss", *BOX_HEAD, *new), first_stage=SOFTMAX)


def methods() -> dict[str, Method]:
    """Name -> method; first those with published figures, then every other loss."""
    softmax = with_loss("SoftmaxCrossEntropy")
    rfs = with_repeat_factors(softmax, RFS)
    cosine = softmax.but("cosine", *COSINE)
    published = [
        softmax,
        with_loss("EqualizationLossV2"),
        rfs,
        with_loss("EqualizationLoss"),
        *second_stages(softmax),
        with_loss("SigmoidCrossEntropy"),
        cosine,
        with_loss("SeesawLoss"),
        rfs.but("NorCal-RFS", f"{HEAD}.CALIBRATION.NAME", "NorCal", first_stage=RFS, scores_only=True),
        with_repeat_factors(with_loss("EffectiveClassMarginLoss"), "ECM-RFS").but(
            "ECM-RFS", "SOLVER.WARMUP_ITERS", RFS_ITERATIONS // 9
        ),
        with_repeat_factors(with_loss("DropLoss"), "DropLoss-RFS"),
        with_repeat_factors(cosine, "cosine-RFS"),
    ]
    others = [with_loss(name) for name in sorted(name for name, _ in CLS_LOSS_REGISTRY)]
    others.append(
        softmax.but(
            "LogitAdjustment-softmax",
            *(f"{HEAD}.CALIBRATION.NAME", "LogitAdjustment"),
            first_stage=SOFTMAX,
            scores_only=True,
        )
    )
    published += [whole(softmax), whole(with_loss("EqualizationLossV2"))]
    shortened = [shortened_method(m) for m in published if m.name in PUBLISHED]
    return {method.name: method for method in [*published, *others, *shortened]}


def whole(method: Method) -> Method:
    """Nothing frozen, no features kept: what the others are a short form of."""
    return method.but(f"{method.name}-whole", "MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.FREEZE", [])


def shortened_method(method: Method) -> Method:
    """A third of the iterations, in a first stage as well: would less do?"""
    settings = dict(zip(method.overrides[::2], method.overrides[1::2], strict=True))
    iterations = settings.get("SOLVER.MAX_ITER", ITERATIONS) // 3
    warmup = settings.get("SOLVER.WARMUP_ITERS", 3 * 50) // 3
    short = method.but(method.name + SHORTENED, "SOLVER.MAX_ITER", iterations, "SOLVER.WARMUP_ITERS", warmup)
    return replace(short, first_stage=method.first_stage and method.first_stage + SHORTENED)


def runs(seeds: tuple[int, ...] = SEEDS) -> list[tuple[Method, int]]:
    """(method, seed) in the order in which they are made.

    The published of all seeds, then the others of the first, and last the published in short.
    """
    known = methods()
    plan = [(known[name], seed) for seed in seeds for name in PUBLISHED]
    short = [name + SHORTENED for name in PUBLISHED]
    plan += [(method, seeds[0]) for name, method in known.items() if name not in PUBLISHED and name not in short]
    return plan + [(known[name], seed) for seed in seeds for name in short]


class Figures(NamedTuple):
    """AP and APr of a method on LVIS v1 val, and those of a baseline in the same source.

    Mask AP, R-50, 1x, of others. APr is None where the source has none.
    """

    AP: float
    APr: float | None
    baseline: str | None  # None: the origin of all differences
    baseline_AP: float
    baseline_APr: float | None
    source: str
    tuned: bool  # in the half of the methods that the set may be tuned on; the others are held out


EQLV2, GOL, DISALIGN = "EQLv2's README", "GOL's README", "DisAlign's README, 180,000 iterations"
PUBLISHED = {
    SOFTMAX: Figures(16.1, 0.0, None, 16.1, 0.0, EQLV2, True),
    "EQL": Figures(18.6, 2.1, SOFTMAX, 16.1, 0.0, EQLV2, True),
    "RFS": Figures(22.2, 11.5, SOFTMAX, 16.1, 0.0, EQLV2, True),
    "EQLv2": Figures(23.7, 14.9, SOFTMAX, 16.1, 0.0, EQLV2, True),
    "cRT": Figures(22.1, 11.9, SOFTMAX, 16.1, 0.0, EQLV2, True),
    "BAGS": Figures(23.1, 13.1, SOFTMAX, 16.1, 0.0, EQLV2, True),
    "LWS": Figures(17.0, 2.0, SOFTMAX, 16.1, 0.0, EQLV2, True),
    "sigmoid": Figures(16.4, 0.8, SOFTMAX, 15.2, 0.0, GOL, False),
    "cosine": Figures(21.1, 6.7, SOFTMAX, 18.3, 1.0, DISALIGN, False),
    "Seesaw": Figures(25.0, None, SOFTMAX, 16.1, 0.0, "mmdetection, 2x, minus EQLv2's softmax, 1x", False),
    "NorCal-RFS": Figures(25.2, 19.3, RFS, 22.6, 12.3, "NorCal's paper", False),
    "ECM-RFS": Figures(26.4, None, RFS, 21.7, None, "ECM's README, minus mmdetection's RFS, 1x", False),
    "DropLoss-RFS": Figures(22.3, 12.4, SOFTMAX, 16.1, 0.0, "DropLoss's paper, minus EQLv2's softmax", False),
    "cosine-RFS": Figures(23.3, 13.8, SOFTMAX, 18.3, 1.0, DISALIGN, False),
}


def published_gain(method: str, metric: str) -> float | None:
    """A method's AP or APr minus softmax's: through its source's baseline, which is softmax, or RFS. None: unknown."""
    figures = PUBLISHED[method]
    value, of_baseline = getattr(figures, metric), getattr(figures, f"baseline_{metric}")
    if value is None or of_baseline is None:
        return None
    return value - of_baseline + (published_gain(figures.baseline, metric) if figures.baseline else 0.0)
