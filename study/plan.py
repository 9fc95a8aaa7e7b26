"""What the benchmark trains: variants of the MiniLVIS configs, in studies, which share them."""

import functools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from eql_d2 import CLS_LOSS_REGISTRY
from eql_d2.engine import load_config
from eql_d2.engine.settings import loss_name
from eql_d2.mini_lvis.generator import MiniLVISSpec, ensure

CONFIGS = Path(__file__).parents[1] / "configs" / "MiniLVIS"
LOSS = "MODEL.ROI_BOX_HEAD.CLS_LOSS"
SOFTMAX, SOFTMAX_EQL = "SoftmaxCrossEntropy", "SoftmaxEqualizationLoss"
SIGMOID, EQL = "SigmoidCrossEntropy", "EqualizationLoss"
EQL_V2 = "EqualizationLossV2"
KEY_LOSSES = (SOFTMAX, SOFTMAX_EQL, SIGMOID, EQL)
# A seed is that of the data and of the training: another dataset, another order, another first classifier. Two losses
# were tuned on the dataset of seed 0 (docs/mini_lvis.md), so it is none of these.
SEEDS, KEY_SEEDS, FEW_SEEDS = (1, 2, 3), (1, 2, 3, 4, 5), (1, 2)


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    Args:
        name: unique; letters that a folder's name may have.
        config: file in configs/MiniLVIS.
        overrides: config keys and values.
        seeds: the runs to make.
        data: in what the dataset differs from the default :class:`MiniLVISSpec`.
        first_stage: the variant whose weights, of the same seed, it starts from.
    """

    name: str
    config: str
    overrides: tuple = ()
    seeds: tuple[int, ...] = SEEDS
    data: dict[str, float] = field(default_factory=dict)
    first_stage: str | None = None

    def but(self, name: str, *overrides, **changes) -> "Variant":
        """The same with more overrides, for the usual number of seeds."""
        return replace(
            self, name=f"{self.name}-{name}", overrides=self.overrides + overrides, **{"seeds": SEEDS, **changes}
        )

    def arguments(self, seed: int, datasets: Path, output: Path) -> list[str]:
        """Those of tools/train_net.py for ``<output>/<name>/<seed>``, whose data are made in ``datasets`` first."""
        data = registered(MiniLVISSpec(seed=seed, **self.data), datasets / dataset_name("mini_lvis", self.data, seed))
        overrides = ["TEST.FIXED_AP_DETECTIONS_PER_IMAGE", -1, *self.overrides, *data, *places(self, seed, output)]
        return ["--config-file", str(CONFIGS / self.config), "--resume", *map(str, overrides)]


def dataset_name(base: str, changed: dict[str, float], seed: int) -> str:
    """Of a set that differs in ``changed`` from the one that ``base`` names."""
    return "_".join([base, *(f"{key}_{value}" for key, value in changed.items()), f"seed_{seed}"])


def places(variant, seed: int, output: Path) -> list:
    """The config keys of a variant's seed, its folder, and the first stage's weights."""
    first = variant.first_stage
    weights = ["MODEL.WEIGHTS", output / first / str(seed) / "model_final.pth"] if first else []
    return ["SEED", seed, *weights, "OUTPUT_DIR", output / variant.name / str(seed)]


def planned(variants: list[Variant]) -> list[tuple[Variant, int]]:
    """(variant, seed), each once: all variants of a seed before the next, for an even table."""
    seeds = sorted({seed for variant in variants for seed in variant.seeds})
    return list({(v.name, seed): (v, seed) for seed in seeds for v in variants if seed in v.seeds}.values())


def registered(spec: MiniLVISSpec, folder: Path) -> list:
    """The config keys of a MiniLVIS, which is generated unless it is there."""
    folder, name = ensure(spec, folder), folder.name
    entries = [[f"{name}_{split}", f"{folder}/mini_lvis_{split}.json", str(folder)] for split in ("train", "val")]
    (train, *_), (val, *_) = entries
    return ["DATASETS.REGISTER", entries, "DATASETS.TRAIN", (train,), "DATASETS.TEST", (val,)]


@functools.cache
def config_files() -> dict[str, str]:
    """Loss -> its file in configs/MiniLVIS."""
    paths = [path for path in sorted(CONFIGS.glob("*_faster_rcnn.yaml")) if not path.name.startswith("stage2_")]
    return {loss_name(load_config(str(path))): path.name for path in paths}


def loss_variants() -> dict[str, Variant]:
    """Every registered loss: with its file in configs/MiniLVIS, or by its defaults."""
    files = config_files()
    variants = {}
    for name in sorted(name for name, _ in CLS_LOSS_REGISTRY):
        seeds = KEY_SEEDS if name in KEY_LOSSES else SEEDS
        by_defaults = Variant(name, "softmax_faster_rcnn.yaml", (f"{LOSS}.NAME", name), seeds)
        variants[name] = Variant(name, files[name], seeds=seeds) if name in files else by_defaults
    return variants


class Row(NamedTuple):
    """A variant in a study, and the name of the one that it is compared with."""

    variant: Variant
    baseline: str | None = None


def studies() -> dict[str, list[Row]]:
    """Study -> its rows, in the order in which they are trained."""
    losses = loss_variants()
    key = softmax, softmax_eql, sigmoid, eql = [losses[name] for name in KEY_LOSSES]
    rfs = repeat_factors(softmax)
    pasted, both = pasting(softmax), pasting(rfs)
    return {
        "losses": [Row(variant) for variant in losses.values()],
        "tail": [Row(sigmoid), Row(eql, SIGMOID), *(Row(v, SIGMOID) for v in tails(eql))],
        "background": [Row(sigmoid), Row(eql, SIGMOID), Row(without_exclusion(eql), SIGMOID)],
        "gamma": [Row(softmax), Row(softmax_eql, SOFTMAX), *(Row(v, SOFTMAX) for v in gammas(softmax_eql))],
        "sampler": [row for loss in (*key, losses[EQL_V2]) for row in samplers(loss)],
        "copy_paste": [row for loss in (softmax, sigmoid, eql) for row in (Row(loss), Row(pasting(loss), loss.name))],
        "combination": [Row(softmax), Row(rfs, SOFTMAX), Row(pasted, SOFTMAX), Row(both, rfs.name)],
        "calibration": [Row(v) for v in (softmax, sigmoid, eql, in_rows(softmax), rfs, pasted, both)],
        "second_stage": [Row(softmax), Row(sigmoid), *(Row(v, v.first_stage) for v in second_stages())],
        "prior": paired(sigmoid, eql, [prior(p) for p in (0.001, 0.1)]),
        "data": paired(sigmoid, eql, [fewer_categories, milder_tail]),
        "masks": paired(sigmoid, eql, [with_masks]),
        "one_stage": one_stage(),
    }


def paired(baseline: Variant, loss: Variant, changes: list) -> list[Row]:
    """Both with each change, compared with one another under it."""
    rows = [Row(baseline), Row(loss, baseline.name)]
    for change in changes:
        rows += [Row(change(baseline)), Row(change(loss), change(baseline).name)]
    return rows


def one_stage() -> list[Row]:
    """RetinaNet, whose own loss is focal; the first two first, which answer whether EFL is right where it was made."""
    focal = Variant("SigmoidFocalLoss-RetinaNet", "focal_retinanet.yaml")
    others = (
        Variant("EqualizedFocalLoss-RetinaNet", "efl_retinanet.yaml"),
        Variant("SigmoidCrossEntropy-RetinaNet", "sigmoid_retinanet.yaml"),
        Variant("EqualizationLoss-RetinaNet", "eql_retinanet.yaml"),
    )
    return [Row(focal), *(Row(variant, focal.name) for variant in others)]


def tails(eql: Variant) -> list[Variant]:
    tail = f"{LOSS}.{EQL}.TAIL"
    return [eql.but(f"tail-{n}", f"{tail}.GROUPS", None, f"{tail}.MAX_IMAGE_COUNT", n) for n in (3, 30, 100, 500)]


def without_exclusion(eql: Variant) -> Variant:
    return eql.but("with-background", f"{LOSS}.{EQL}.EXCLUDE_BACKGROUND", False)


def gammas(softmax_eql: Variant) -> list[Variant]:
    return [softmax_eql.but(f"gamma-{g}", f"{LOSS}.{SOFTMAX_EQL}.GAMMA", g) for g in (0.5, 0.75, 0.95, 1.0)]


# Below 100 images a category is repeated, as by LVIS's threshold of 0.001.
REPEAT_THRESHOLD = "DATALOADER.REPEAT_THRESHOLD", 100 / 1500


def repeat_factors(loss: Variant) -> Variant:
    return loss.but("RFS", "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", *REPEAT_THRESHOLD)


def samplers(loss: Variant) -> list[Row]:
    """IRFS counts objects, too."""
    rfs = repeat_factors(loss)
    instance_aware = "DATALOADER.SAMPLER_TRAIN", "InstanceAwareRepeatFactorSampler"
    irfs = loss.but("IRFS", *instance_aware, *REPEAT_THRESHOLD, seeds=FEW_SEEDS)
    return [Row(loss), Row(rfs, loss.name), Row(irfs, rfs.name)]


def pasting(loss: Variant) -> Variant:
    """0 to 6 objects more in an image, all categories alike."""
    return loss.but("copy-paste", "INPUT.COPY_PASTE.MAX_OBJECTS", 6, seeds=FEW_SEEDS)


def second_stages() -> list[Variant]:
    recipes = (
        ("cRT", "crt", SOFTMAX),
        ("meta-cRT", "crt_meta", SOFTMAX),
        ("LWS", "lws", SOFTMAX),
        ("BAGS", "bags", SOFTMAX),
    )
    recipes += (("BALMS", "balanced_softmax", SIGMOID),)
    return [
        Variant(f"{name}-on-{first}", f"stage2_{file}_faster_rcnn.yaml", first_stage=first)
        for name, file, first in recipes
    ]


def prior(probability: float):
    def change(loss: Variant) -> Variant:
        key = f"{LOSS}.{loss.name}.PRIOR_PROB"
        return loss.but(f"prior-{probability}", key, probability, seeds=FEW_SEEDS)

    return change


def fewer_categories(loss: Variant) -> Variant:
    classes = "MODEL.ROI_HEADS.NUM_CLASSES", 45
    return loss.but("45-categories", *classes, data={"num_categories": 45}, seeds=FEW_SEEDS)


def milder_tail(loss: Variant) -> Variant:
    return loss.but("milder-tail", data={"tail_exponent": 0.8}, seeds=FEW_SEEDS)


def in_rows(loss: Variant) -> Variant:
    """Half of the categories have a height of their own in the image."""
    return loss.but("rows", data={"rows": True}, seeds=FEW_SEEDS)


def with_masks(loss: Variant) -> Variant:
    head = (
        "MODEL.MASK_ON",
        True,
        "MODEL.ROI_MASK_HEAD.NAME",
        "MaskRCNNConvUpsampleHead",
        "MODEL.ROI_MASK_HEAD.NUM_CONV",
        2,
        "MODEL.ROI_MASK_HEAD.CONV_DIM",
        48,
        "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK",
        True,
        "TEST.FIXED_AP_DETECTIONS_PER_IMAGE",
        300,  # each has a mask to draw
    )
    return loss.but("masks", *head, seeds=FEW_SEEDS)
