"""A training in two processes is that in one: the same images, losses, statistics and weights."""

import socket
import sys
from pathlib import Path

import pytest
import torch

from tests.slow.runs import CONFIG, ROOT, Run, assert_equal

pytestmark = pytest.mark.slow

LOSSES = ("EqualizationLoss", "EqualizationLossV2", "SeesawLoss")  # without statistics, and with two kinds of them
ITERATIONS = 40
# What two processes cannot share is switched off: they draw anchors and RoIs each for itself (here all are taken, as
# many of each image), and batch normalisation is over the images of one.
OPTIONS = {
    "DATASETS.TEST": (),
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "MODEL.ANCHOR_GENERATOR.SIZES": [[9, 15, 24]],  # 3 for each of 8 x 8 places
    "MODEL.FPN.NORM": "LN",
    "MODEL.RESNETS.NORM": "LN",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 192,
    "MODEL.ROI_HEADS.NAME": "LongTailROIHeads",
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 1.0,
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": False,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 192,
    "MODEL.RPN.NMS_THRESH": 1.0,
    "MODEL.RPN.POSITIVE_FRACTION": 1.0,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 192,
    "SOLVER.CHECKPOINT_PERIOD": ITERATIONS // 2,
    "SOLVER.IMS_PER_BATCH": 4,
    "SEED": 0,
}


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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The output folder of a training of a loss that was started in a way, each made once."""
    root, done = tmp_path_factory.mktemp("processes"), {}

    def train(loss: str, way) -> Path:
        folder = root / f"{loss}_{way.__name__}"
        if folder in done:
            return folder
        runs = []
        for machine, (before, arguments) in enumerate(way()):
            options = {**OPTIONS, "MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME": loss, "OUTPUT_DIR": folder}
            run = Run(folder / f"machine_{machine}", root / "data", ITERATIONS, options)
            tool = [str(ROOT / "tools" / "train_net.py"), "--config-file", CONFIG]
            run.start_command([sys.executable, *before, *tool, *arguments, *run.options])
            runs.append(run)
        for run in runs:
            run.finish()
        done[folder] = True
        return folder

    return train


@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_train_as_one(trained, loss):
    """Up to rounding: relative to the size of losses and statistics, and for weights to how far they move."""
    one, two = trained(loss, one_process), trained(loss, num_gpus)
    a, b = (weights_of(folder / "model_final.pth") for folder in (one, two))
    before = weights_of(one / f"model_{ITERATIONS // 2 - 1:07d}.pth")
    statistics = [name for name in a if ".cls_loss." in name]
    weights = [name for name in a if name not in statistics]
    found = {
        "losses": max(abs(x - y) / abs(x) for x, y in zip(losses_of(one), losses_of(two), strict=True)),
        "statistics": max([0.0, *(distance(a, b, [name]) / norm(a, [name]) for name in statistics)]),
        "weights": distance(a, b, weights) / distance(a, before, weights),
    }
    print(f"{loss}: largest relative differences between one process and two: {found}")
    assert found["losses"] <= 1e-4 and found["statistics"] <= 1e-4 and found["weights"] <= 1e-3


@pytest.mark.parametrize("way", [torchrun, two_machines])
def test_all_ways_to_start_two_train_the_same(trained, way):
    a, b = (weights_of(trained(LOSSES[0], w) / "model_final.pth") for w in (num_gpus, way))
    assert assert_equal(a, b) > 100_000


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def losses_of(folder: Path) -> list[float]:
    """The losses of the last iterations."""
    trainer = torch.load(folder / "model_final.pth", weights_only=True)["trainer"]
    return [value for value, _ in trainer["hooks"]["Resumption"]["metrics"]["total_loss"]["values"]]


def norm(a: dict, names: list[str]) -> float:
    return torch.cat([a[name].double().flatten() for name in names]).norm().item()


def distance(a: dict, b: dict, names: list[str]) -> float:
    return norm({name: a[name].double() - b[name].double() for name in names}, names)
