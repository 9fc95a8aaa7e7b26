"""What the pictures of the losses draw is the derivative of the loss."""

import pytest
import torch
from PIL import Image

from eql_d2.drawing import losses as loss_plots
from eql_d2.drawing.losses import Probe, build_loss, lvis_frequencies, plot_overview, typical_categories

Z = torch.tensor([-3.0, 0.0, 2.0])


@pytest.fixture(scope="module")
def frequencies():
    return lvis_frequencies()


def pushes(name, frequencies, role, category):
    return torch.from_numpy(Probe(build_loss(name), frequencies).pushes(role, category, Z))


def test_sigmoid_cross_entropy(frequencies):
    for role, expected in (("foreground", Z.sigmoid()), ("background", Z.sigmoid()), ("label", (-Z).sigmoid())):
        torch.testing.assert_close(pushes("SigmoidCrossEntropy", frequencies, role, 5), expected)


def test_equalization_loss_spares_the_tail_on_foreground(frequencies):
    typical = typical_categories(frequencies)
    assert not pushes("EqualizationLoss", frequencies, "foreground", typical["r"]).any()
    torch.testing.assert_close(pushes("EqualizationLoss", frequencies, "foreground", typical["f"]), Z.sigmoid())


def test_a_random_loss_is_averaged(frequencies, monkeypatch):
    """A background RoI trains a common category with a chance of 0.1; of 400 draws the mean is off by 15 %."""
    monkeypatch.setattr(loss_plots, "NUM_DRAWS", 400)
    common = typical_categories(frequencies)["c"]
    drawn = pushes("AdaptiveClassSuppressionLoss", frequencies, "background", common)
    torch.testing.assert_close(drawn, 0.1 * Z.sigmoid(), rtol=0.6, atol=0)


def test_overview(tmp_path):
    plot_overview(["SoftmaxCrossEntropy", "EqualizationLoss"], tmp_path / "overview.png")
    assert Image.open(tmp_path / "overview.png").size[0] > 1000
