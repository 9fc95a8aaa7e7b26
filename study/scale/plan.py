"""What is trained on `mini_lvis_1203`, and what it is held against; written before any run of an untouched seed."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from eql_d2 import CLS_LOSS_REGISTRY
from eql_d2.mini_lvis.lvis_scale import MiniLVIS1203Spec
from study.plan import dataset_name, places, registered

CONFIG = Path(__file__).parents[2] / "configs" / "MiniLVIS" / "Base-MiniLVIS-1203.yaml"
HEAD = "MODEL.ROI_BOX_HEAD"
LOSS = f"{HEAD}.CLS_LOSS"
SOFTMAX, RFS = "softmax", "RFS"

# A seed is that of the data and of the training. The set may be tuned on the first. The others are reported; whatever
# is changed after a result of one of them was seen makes it one that was looked at, and another takes its place.
TUNING_SEED, SEEDS = 9, (0, 1, 2)
ITERATIONS = 6000
# As in mmdetection, from which most published figures come, a schedule is so many epochs; with repeat factors an epoch
# has 1.77 times as many images here (the mean factor of seed 0).
RFS_ITERATIONS = round(1.77 * ITERATIONS)
REPEAT_FACTORS = "RepeatFactorTrainingSampler"
LENGTHS = ("SOLVER.MAX_ITER", "SOLVER.WARMUP_ITERS")


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Args:
        name: unique; letters that a folder's name may have.
        overrides: of Base-MiniLVIS-1203.yaml, config keys and values.
        first_stage: the method from whose weights, of the same seed, it starts.
        scores_only: nothing is trained; the first stage is evaluated with the overrides.
        data: in what the set differs from the default :class:`MiniLVIS1203Spec`.
    """

    name: str
    overrides: tuple = ()
    first_stage: str | None = None
    scores_only: bool = False
    data: dict[str, float] = field(default_factory=dict)

    def but(self, name: str, *overrides, **changes) -> "Method":
        return replace(self, name=name, overrides=self.overrides + overrides, **changes)

    def arguments(self, seed: int, datasets: Path, output: Path) -> list[str]:
        """Those of tools/train_net.py for ``<output>/<name>/<seed>``, whose data are made in ``datasets`` first."""
        name = dataset_name("mini_lvis_1203", self.data, seed)
        data = registered(MiniLVIS1203Spec(seed=seed, **self.data), datasets / name)
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
NEW_CLASSIFIER = (*BOX_HEAD, "MODEL.NEW_CLASSIFIER", True)
CRT = (*NEW_CLASSIFIER, *CLASSES_ALIKE)


def with_loss(name: str) -> Method:
    return Method(SHORT.get(name, name), (f"{LOSS}.NAME", name, *OF_A_LOSS.get(name, ())))


def with_sampler(method: Method, name: str, sampler: str, threshold: float) -> Method:
    """For as many iterations as repeat factor sampling gets."""
    keys = ("DATALOADER.SAMPLER_TRAIN", sampler, "DATALOADER.REPEAT_THRESHOLD", threshold)
    return method.but(name, *keys, "SOLVER.MAX_ITER", RFS_ITERATIONS)


def repeat_threshold(spec: MiniLVIS1203Spec) -> float:
    """Below 100 images a category is repeated, as by LVIS's threshold of 0.001."""
    return 100 / spec.num_train_images


def with_repeat_factors(method: Method, name: str) -> Method:
    """For as many epochs, which are longer."""
    return with_sampler(method, name, REPEAT_FACTORS, repeat_threshold(MiniLVIS1203Spec()))


def samplers(losses: list[Method]) -> Iterator[Method]:
    """Repeat factors by images (RFS) and by images and objects (IRFS), with the losses that are compared most."""
    softmax, *_ = losses
    threshold = repeat_threshold(MiniLVIS1203Spec())
    yield softmax.but("class-aware", *CLASSES_ALIKE)
    for loss in losses:
        if loss is not softmax:  # which is the published RFS
            yield with_repeat_factors(loss, f"{loss.name}-RFS")
        yield with_sampler(loss, f"{loss.name}-IRFS", "InstanceAwareRepeatFactorSampler", threshold)
    # Its authors' threshold: at that of the others a category of one image would be repeated 10^13 times.
    yield with_sampler(softmax, "softmax-E-IRFS", "ExponentialRepeatFactorSampler", 1e-4)


def more_second_stages(softmax: Method) -> Iterator[Method]:
    """Without published figures of this schedule."""
    yield softmax.but("cRT-on-RFS", *CRT, first_stage=RFS)
    yield softmax.but("meta-cRT", *CRT, f"{HEAD}.META_REWEIGHT.ENABLED", True, first_stage=SOFTMAX)
    fcbl = (f"{LOSS}.NAME", "ForegroundClassificationBalanceLoss", *NEW_CLASSIFIER)
    yield Method("FCBL-stage-2", fcbl, first_stage=SOFTMAX)
    balanced = (f"{LOSS}.NAME", "BalancedSoftmaxLoss", "MODEL.FREEZE", [*BOX_HEAD[1], "*.bbox_pred"])
    yield Method("BALMS", (*balanced, "SOLVER.MAX_ITER", ITERATIONS // 4), first_stage="sigmoid")


def second_stages(softmax: Method) -> Iterator[Method]:
    """As in configs/LVISv1/stage2_*.yaml: on a softmax model, with the features as they are."""
    yield softmax.but("cRT", *CRT, first_stage=SOFTMAX)
    frozen = ("MODEL.FREEZE", [*BOX_HEAD[1], "*.cls_score", "*.bbox_pred"])
    yield softmax.but("LWS", *frozen, f"{HEAD}.CLS_SCALE", True, *CLASSES_ALIKE, first_stage=SOFTMAX)
    yield Method("BAGS", (f"{LOSS}.NAME", "BalancedGroupSoftmaxLoss", *NEW_CLASSIFIER), first_stage=SOFTMAX)


def published() -> list[Method]:
    softmax = with_loss("SoftmaxCrossEntropy")
    rfs = with_repeat_factors(softmax, RFS)
    cosine = softmax.but("cosine", *COSINE)
    return [
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


def others() -> list[Method]:
    """Without published figures of this schedule: losses, then samplers, second stages and whole trainings."""
    losses = {name: with_loss(name) for name in sorted(name for name, _ in CLS_LOSS_REGISTRY)}
    key = softmax, *_, eql_v2 = [
        losses[name]
        for name in ("SoftmaxCrossEntropy", "SigmoidCrossEntropy", "EqualizationLoss", "EqualizationLossV2")
    ]
    adjusted = (f"{HEAD}.CALIBRATION.NAME", "LogitAdjustment")
    return [
        *(loss for loss in losses.values() if loss.name not in PUBLISHED),
        softmax.but("LogitAdjustment-softmax", *adjusted, first_stage=SOFTMAX, scores_only=True),
        *samplers(key),
        *more_second_stages(softmax),
        whole(softmax),
        whole(eql_v2),
        whole(softmax).but("copy-paste-whole", "INPUT.COPY_PASTE.MAX_OBJECTS", 6),  # kept features know no pasting
    ]


def methods() -> dict[str, Method]:
    """Name -> method of all."""
    by_name = {method.name: method for method in published()}
    changed = [change.of(by_name[name]) for change in CHANGES for name in change.only]
    return by_name | {method.name: method for method in [*others(), *changed]}


def whole(method: Method) -> Method:
    """Nothing frozen, no features kept: what the others are a short form of."""
    return method.but(f"{method.name}-whole", "MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.FREEZE", [])


@dataclass(frozen=True)
class Change:
    """One property of the set or of the schedule that is changed for methods with published figures.

    Args:
        label: in the tables.
        ending: of the names of the changed methods.
        length: of their trainings, of a first stage as well, against the usual.
        seeds, only: which are made.
        data: as of a :class:`Method`.
    """

    label: str
    ending: str
    length: float
    seeds: tuple[int, ...]
    only: tuple[str, ...]
    data: dict[str, float] = field(default_factory=dict)

    def of(self, method: Method) -> Method:
        settings = dict(zip(method.overrides[::2], method.overrides[1::2], strict=True))
        lengths = {"SOLVER.MAX_ITER": ITERATIONS} | {k: v for k, v in settings.items() if k in LENGTHS}
        overrides = {key: round(length * self.length) for key, length in lengths.items()}
        if settings.get("DATALOADER.SAMPLER_TRAIN") == REPEAT_FACTORS:
            overrides["DATALOADER.REPEAT_THRESHOLD"] = repeat_threshold(MiniLVIS1203Spec(**self.data))
        first = method.first_stage and method.first_stage + self.ending
        pairs = [part for pair in overrides.items() for part in pair]
        return method.but(method.name + self.ending, *pairs, first_stage=first, data=self.data)


def runs(seeds: tuple[int, ...] = SEEDS) -> list[tuple[Method, int]]:
    """(method, seed) in the order in which they are made.

    The published of all seeds, then the others of the first, and last the published with a change.
    """
    known = methods()
    plan = [(known[name], seed) for seed in seeds for name in PUBLISHED]
    plan += [(method, seeds[0]) for method in others()]
    return plan + [
        (known[name + c.ending], seed) for c in CHANGES for seed in c.seeds if seed in seeds for name in c.only
    ]


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


# A longer head is what LVIS has (101 to 1,977 images; here up to 182): does it mend what is out of order? The methods
# are those that are, and what they are measured against.
LONGER_HEAD = {"head_exponent": 0.4}
CHANGES = (
    Change("a third of the iterations", "-third", 1 / 3, SEEDS, tuple(PUBLISHED)),
    Change(
        "head exponent 0.4",
        "-long-head",
        MiniLVIS1203Spec(**LONGER_HEAD).num_train_images / MiniLVIS1203Spec().num_train_images,
        SEEDS[:1],
        (SOFTMAX, "EQL", "RFS", "LWS", "cosine", "DropLoss-RFS", "cosine-RFS"),
        LONGER_HEAD,
    ),
    Change("64 px", "-64px", 1.0, SEEDS[:1], tuple(PUBLISHED), {"image_size": 64}),
)
