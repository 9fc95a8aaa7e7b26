"""Section `dense` of python -m speed: one step of a dense detector's classification loss, forward and backward.

Beside fvcore's, which Detectron2's RetinaNet and FCOS have, with its one-hot target made beforehand. A size is that of
the logits in memory; fvcore needs eleven, so it is measured on fewer anchors, and the larger case is ours alone.
"""

import os
from functools import partial

import torch
from fvcore.nn import sigmoid_focal_loss
from torch.nn import functional as F

from eql_d2.losses import EqualizationLoss, EqualizedFocalLoss, SigmoidCrossEntropy, SigmoidFocalLoss, normalised_loss
from speed.losses import Step, frequencies_of, peak_bytes
from speed.measuring import alternate

K = 1203
CASES = {20_000: True, 200_000: False}  # anchors -> whether fvcore is measured, too
FOREGROUND = 200  # one anchor in so many
NORMALIZER = 100.0


def benchmark_dense(repeats: int) -> list[dict]:
    """One row for each loss in each case."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler prints that there is no GPU
    rows = []
    for R, with_fvcore in CASES.items():
        steps = make_steps(R, with_fvcore)
        seconds = alternate(steps, repeats if with_fvcore else 1)
        for name, step in steps.items():
            row = {"section": "dense", "case": f"{R} x {K}", "loss": name, "ms": seconds[name] * 1e3}
            row["ns / logit"] = seconds[name] / (R * K) * 1e9
            row["sizes"] = peak_bytes(step) / (R * K * 4)
            if with_fvcore:
                row["times faster"] = seconds["fvcore"] / seconds[name]
            rows.append(row)
    return rows


def make_steps(R: int, with_fvcore: bool) -> dict[str, Step]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(R, K, generator=generator).sub_(5)
    labels = torch.full((R,), K)
    labels[::FOREGROUND] = torch.randint(0, K, (len(labels[::FOREGROUND]),), generator=generator)
    steps = {}
    if with_fvcore:
        target = F.one_hot(labels, K + 1)[:, :-1].float()

        def fvcore(z, _labels):
            return sigmoid_focal_loss(z, target, alpha=0.25, gamma=2, reduction="sum") / NORMALIZER

        steps["fvcore"] = Step(fvcore, logits, labels)
    for loss in (
        SigmoidFocalLoss(K),
        SigmoidCrossEntropy(K),
        EqualizationLoss(K, frequencies=frequencies_of(K)),
        EqualizedFocalLoss(K),
    ):
        steps[type(loss).__name__] = Step(partial(normalised_loss, loss, normalizer=NORMALIZER), logits, labels)
    return steps
