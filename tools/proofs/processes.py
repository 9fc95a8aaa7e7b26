"""Proof that a training in two processes is that in one: the same images, losses, statistics and weights."""

import shutil
import socket
import sys
from pathlib import Path

import torch
from proofs.interruptions import Workshop
from proofs.runs import CONFIG, ROOT, Failed, Run, compare
from tqdm import tqdm

LOSSES = ("EqualizationLoss", "EqualizationLossV2", "SeesawLoss")  # without statistics, and with two kinds of them
ITERATIONS = 40
# Relative to the size of losses and statistics; for weights, to how far they move in the second half of the training.
TOLERANCE = {"losses": 1e-4, "statistics": 1e-4, "weights": 1e-3}
# What two processes cannot share is switched off: they draw anchors and RoIs each for itself (here all are taken, as
# many of each image), and batch normalisation is over the images of one.
OPTIONS = (
    "DATASETS.TEST",
    (),
    "INPUT.MIN_SIZE_TRAIN",
    (64,),
    "MODEL.ANCHOR_GENERATOR.SIZES",
    [[9, 15, 24]],  # 3 for each of 8 x 8 places
    "MODEL.FPN.NORM",
    "LN",
    "MODEL.RESNETS.NORM",
    "LN",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE",
    192,
    "MODEL.ROI_HEADS.NAME",
    "LongTailROIHeads",
    "MODEL.ROI_HEADS.POSITIVE_FRACTION",
    1.0,
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT",
    False,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE",
    192,
    "MODEL.RPN.NMS_THRESH",
    1.0,
    "MODEL.RPN.POSITIVE_FRACTION",
    1.0,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN",
    192,
    "SOLVER.CHECKPOINT_PERIOD",
    ITERATIONS // 2,
    "SOLVER.IMS_PER_BATCH",
    4,
)


# ---- each way to start a training: of its commands what comes before the tool, and the tool's arguments ----


def one_process() -> list[tuple[list, list]]:
    return [([], [])]


def num_gpus() -> list[tuple[list, list]]:
    return [([], ["--num-gpus", "2", "--dist-url", "auto"])]


def torchrun() -> list[tuple[list, list]]:
    return [(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"], [])]


def two_machines() -> list[tuple[list, list]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    return [([], ["--num-machines", "2", "--machine-rank", str(rank), "--dist-url", url]) for rank in (0, 1)]


def processes(workshop: Workshop) -> dict:
    """One training in one process and in two, started in three ways: the same batches, losses and weights."""
    plan = [(loss, way) for loss in LOSSES for way in (one_process, num_gpus)]
    plan += [(LOSSES[0], torchrun), (LOSSES[0], two_machines)]
    done = {}
    for loss, way in tqdm(plan, desc="processes", unit="run"):
        done[loss, way] = train(workshop, loss, way)
    found = [differences(done[loss, one_process], done[loss, num_gpus]) for loss in LOSSES]
    largest = {name: maximum([of_loss[name] for of_loss in found]) for name in TOLERANCE}
    check(largest)
    weights = [weights_of(done[LOSSES[0], way] / "model_final.pth") for way in (num_gpus, torchrun, two_machines)]
    numbers = [compare(weights[0], other, ".model") for other in weights[1:]]
    seen = ", ".join(f"{name} {value:.0e} (tolerance {TOLERANCE[name]:.0e})" for name, value in largest.items())
    return {
        "what": f"{len(LOSSES)} losses, {ITERATIONS} iterations of 4 images in one process and of 2 + 2 in two "
        f"(--num-gpus 2), and one of them by torchrun and as two machines, too",
        "seen": f"largest relative difference between one process and two: {seen}; between the three ways to start "
        f"two: none, {numbers[0]} numbers are equal to the last bit",
    }


def train(workshop: Workshop, loss: str, way) -> Path:
    """The output folder of a training that was started in this way."""
    folder = workshop.folder / "processes" / f"{loss}_{way.__name__}"
    shutil.rmtree(folder, ignore_errors=True)
    options = [*OPTIONS, "MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME", loss, "SEED", workshop.seed]
    runs = []
    for machine, (before, arguments) in enumerate(way()):
        console = folder / f"machine_{machine}"
        run = Run(console, workshop.folder / "data", ITERATIONS, *options, "OUTPUT_DIR", folder)
        tool = [str(ROOT / "tools" / "train_net.py"), "--config-file", CONFIG]
        run.start_command([sys.executable, *before, *tool, *arguments, *run.options])
        runs.append(run)
    for run in runs:
        run.finish()
    return folder


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def losses_of(folder: Path) -> list[float]:
    """The losses of the last iterations."""
    trainer = torch.load(folder / "model_final.pth", weights_only=True)["trainer"]
    return [value for value, _ in trainer["hooks"]["Resumption"]["metrics"]["total_loss"]["values"]]


def differences(one: Path, two: Path) -> dict[str, float]:
    """Of losses, statistics and weights of two trainings the largest relative difference, see TOLERANCE."""
    a, b = (weights_of(folder / "model_final.pth") for folder in (one, two))
    before = weights_of(one / f"model_{ITERATIONS // 2 - 1:07d}.pth")
    statistics = [name for name in a if ".cls_loss." in name]
    weights = [name for name in a if name not in statistics]
    return {
        "losses": maximum([abs(x - y) / abs(x) for x, y in zip(losses_of(one), losses_of(two), strict=True)]),
        "statistics": maximum([0.0, *(distance(a, b, [name]) / norm(a, [name]) for name in statistics)]),
        "weights": distance(a, b, weights) / distance(a, before, weights),
    }


def maximum(values: list[float]) -> float:
    """The largest value, or NaN if there is one."""
    return torch.tensor(values, dtype=torch.float64).max().item()


def norm(a: dict, names: list[str]) -> float:
    return torch.cat([a[name].double().flatten() for name in names]).norm().item()


def distance(a: dict, b: dict, names: list[str]) -> float:
    return norm({name: a[name].double() - b[name].double() for name in names}, names)


def check(largest: dict[str, float]) -> None:
    """A difference above its tolerance, or none that is a number, is a failure."""
    for name, difference in largest.items():
        if not difference <= TOLERANCE[name]:
            raise Failed(
                f"largest relative difference of {name} between one process and two: {difference:.1e}, tolerance "
                f"{TOLERANCE[name]:.0e}"
            )
