#!/usr/bin/env python
"""The losses as plain classification losses: scikit-learn's digits, made long-tailed.

    python docs/examples/long_tailed_digits.py

Trains one small network for each registered loss and seed, on a CPU, and prints balanced accuracy: the mean over the
ten digits of the share of their test images that is recognised. Which digits are rare is drawn anew for each seed.
"""

import argparse
import inspect
import json
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import recall_score
from torch import nn
from tqdm import tqdm

from eql_d2 import CLS_LOSS_REGISTRY, ClassFrequencies, TailRule
from eql_d2.modeling.calibration import LogitAdjustment

K = 10
MOST, FEWEST = 120, 2  # training images of the most frequent and the rarest digit
TEST_IMAGES = 50  # of each digit
RARE = 10  # at most so many training images; the tail of the losses that have one
BASELINE, CORRECTED = "SoftmaxCrossEntropy", "... corrected post-hoc"
# Arguments that are not the defaults, which are for 1,000s of classes.
ARGUMENTS = {"ClassDependentTemperatureLoss": {"gamma": 0.3}}
WITHOUT_BACKGROUND = {"BalancedGroupSoftmaxLoss"}  # it has a group for background, and so is no classifier


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="default 5")
    parser.add_argument("--steps", type=int, default=200, help="gradient steps, default 200")
    parser.add_argument("--output", type=Path, help="a JSON file for the accuracies of each seed")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the network is too small to share out
    results = run(args.seeds, args.steps)
    if args.output:
        args.output.write_text(json.dumps({name: np.round(values, 4).tolist() for name, values in results.items()}))
    print(table(results))


def run(seeds: int, steps: int) -> dict:
    """Name of a loss -> (seeds, 2) array: balanced accuracy, and the same over the rare digits alone."""
    results = {}
    for seed in tqdm(range(seeds), unit="seed"):
        train, test, frequencies = long_tailed_digits(seed)
        rare = frequencies.image_count <= RARE
        for name, scores in scores_of_each_loss(train, test[0], frequencies, steps, seed):
            predicted = scores[:, :K].argmax(1)  # column K is background, which is 0 here
            recall = recall_score(test[1], predicted, average=None)
            results.setdefault(name, []).append([recall.mean(), recall[rare].mean()])
    return {name: np.array(values) for name, values in results.items()}


def scores_of_each_loss(train, test_images, frequencies, steps, seed):
    """Yields (name, (N, K + 1) scores of the test images) for a network trained with each loss."""
    for name in sorted(name for name, _ in CLS_LOSS_REGISTRY if name not in WITHOUT_BACKGROUND):
        loss = build(name, frequencies)
        logits = train_network(loss, *train, steps, seed)(test_images).detach()
        yield name, loss.probs(logits)
        if name == BASELINE:
            yield CORRECTED, LogitAdjustment(loss, frequencies)(loss, logits)


def build(name: str, frequencies: ClassFrequencies):
    """A registered loss, told what it asks for."""
    known = {"frequencies": frequencies, "tail": TailRule(max_image_count=RARE), "prior_prob": 1 / K}
    loss = CLS_LOSS_REGISTRY.get(name)
    asked = inspect.signature(loss).parameters
    return loss(K, **{key: value for key, value in known.items() if key in asked}, **ARGUMENTS.get(name, {}))


def train_network(loss, images, labels, steps, seed) -> nn.Module:
    torch.manual_seed(seed)
    body, head = nn.Sequential(nn.Linear(64, 64), nn.ReLU()), nn.Linear(64, K)
    network = nn.Sequential(body, head)
    if loss.prior_prob is not None:
        nn.init.constant_(head.bias, torch.tensor(loss.prior_prob).logit().item())
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.005, weight_decay=0.01)
    for _ in range(steps):
        # (N, K) logits, and no label is K, background: a detector's loss is a classifier's.
        features = body(images)
        value = loss(head(features), labels, features)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return network


def long_tailed_digits(seed: int):
    """(training images, labels), (test images, labels), and how often each digit is in the training set."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16, dtype=torch.float32)
    labels = torch.tensor(labels, dtype=torch.int64)
    random = np.random.default_rng(seed)
    ranks = random.permutation(K)  # 0 is the most frequent
    counts = [round(MOST * (FEWEST / MOST) ** (rank / (K - 1))) for rank in ranks]
    train, test = [], []
    for digit, count in enumerate(counts):
        of_digit = random.permutation(torch.nonzero(labels == digit)[:, 0].numpy())
        test.extend(of_digit[:TEST_IMAGES])
        train.extend(of_digit[TEST_IMAGES : TEST_IMAGES + count])
    # One object an image.
    frequencies = ClassFrequencies(counts, instance_count=counts, num_images=len(train))
    return (images[train], labels[train]), (images[test], labels[test]), frequencies


def table(results: dict) -> str:
    """Best first; means and standard deviations over the seeds, differences taken seed by seed."""
    rows = [
        "| trained with | balanced accuracy, % | minus cross-entropy's | rare digits, % |",
        "|---|---|---|---|",
    ]
    baseline = results[BASELINE][:, 0]
    for name, values in sorted(results.items(), key=lambda item: -item[1][:, 0].mean()):
        columns = (values[:, 0], values[:, 0] - baseline, values[:, 1])
        formats = ("{:.1f} ± {:.1f}", "{:+.1f} ± {:.1f}", "{:.1f} ± {:.1f}")
        cells = [f.format(100 * c.mean(), 100 * c.std(ddof=1)) for f, c in zip(formats, columns)]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
