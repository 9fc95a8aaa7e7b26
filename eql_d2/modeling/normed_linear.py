"""The normalised (cosine) classifier. Shapes as in :mod:`eql_d2.modeling.fast_rcnn`."""

import torch
from torch import nn
from torch.nn import functional as F

from eql_d2.errors import InputError
from eql_d2.losses.base import at_least_fp32

EPSILON = 1e-6  # the least norm that is divided by, as in mmdetection


class NormedLinear(nn.Linear):
    """z_j = temperature cos(x, w_j) + b_j: the norms of features and weights do not count.

    The norm of a category's weights grows with its examples, so that a plain linear layer scores frequent categories
    higher; here it cannot. In the form of Seesaw loss's and ECM's code (temperature 20). The parameters are those of a
    linear layer, by name and shape; norms are computed in fp32 at least.

    Args:
        in_features, out_features: as of ``nn.Linear``.
        temperature: > 0, the largest |z - b|.
        bias: whether there is b.
    """

    def __init__(self, in_features: int, out_features: int, temperature: float, bias: bool = True):
        super().__init__(in_features, out_features, bias=bias)
        if not 0 < temperature < float("inf"):
            raise InputError(f"the temperature must be in (0, inf), got {temperature}")
        self.temperature = temperature

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(R, in_features) -> (R, out_features)."""
        x = self.temperature * F.normalize(at_least_fp32(x), dim=1, eps=EPSILON)
        weight = F.normalize(at_least_fp32(self.weight), dim=1, eps=EPSILON)
        return F.linear(x, weight, self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, temperature={self.temperature}"


def build_classifier(in_features: int, out_features: int, temperature: float, bias: bool) -> nn.Linear:
    """A :class:`NormedLinear`, or for temperature 0 a plain linear layer, which always has a bias.

    Raises:
        InputError: a negative temperature, or a plain layer without bias.
    """
    if temperature != 0:
        return NormedLinear(in_features, out_features, temperature, bias)
    if not bias:
        raise InputError(
            "MODEL.ROI_BOX_HEAD.CLS_NORM.BIAS False needs the normalised classifier: set CLS_NORM.TEMPERATURE above 0"
        )
    return nn.Linear(in_features, out_features)
