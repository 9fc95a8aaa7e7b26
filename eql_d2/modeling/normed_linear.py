"""The normalised (cosine) classifier. Shapes as in :mod:`eql_d2.modeling.fast_rcnn`."""

import numpy as np
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


class EmbeddingClassifier(NormedLinear):
    """z_j = temperature cos(P x, e_j) + b_j, with fixed embeddings e_j of the categories, such as CLIP's of names.

    P is a linear layer that is trained, ``projection``. Background, where the loss has a logit for it, has the
    embedding 0, so that its logit is its bias. As ``ZeroShotClassifier`` of "Detecting Twenty-thousand Classes using
    Image-level Supervision" (Detic; Zhou et al., ECCV 2022, arXiv:2201.02605), whose temperature is 50; it has no bias,
    or one for all categories. The embeddings are no part of a checkpoint: another file makes another vocabulary.

    Args:
        in_features: of x.
        embeddings: (K, D) float.
        out_features: K, or K + 1.
        temperature, bias: as of :class:`NormedLinear`.
    """

    weight: torch.Tensor

    def __init__(
        self, in_features: int, embeddings: torch.Tensor, out_features: int, temperature: float, bias: bool = True
    ):
        K, D = embeddings.shape
        if out_features not in (K, K + 1):
            raise InputError(
                f"MODEL.ROI_BOX_HEAD.CLS_NORM.EMBEDDINGS has {K} categories, but the loss has {out_features} logits: "
                f"expected as many, or one more for background"
            )
        super().__init__(D, out_features, temperature, bias)
        self.projection = nn.Linear(in_features, D)
        del self.weight
        rows = torch.cat([embeddings.float(), torch.zeros(out_features - K, D)])
        self.register_buffer("weight", rows.to(torch.get_default_device()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.projection(x))


def read_embeddings(path: str, num_classes: int) -> torch.Tensor | None:
    """(K, D) float32 of a .npy file; None without a path.

    Raises:
        InputError: no such file, or something else in it.
    """
    key = "MODEL.ROI_BOX_HEAD.CLS_NORM.EMBEDDINGS"
    if not path:
        return None
    try:
        embeddings = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{key}: {path} is no .npy file of numbers that can be read: {error}") from error
    is_float = isinstance(embeddings, np.ndarray) and embeddings.dtype.kind == "f"
    if not is_float or embeddings.ndim != 2 or len(embeddings) != num_classes:
        raise InputError(
            f"{key}: {path} must hold floats of shape ({num_classes}, D), an embedding for each category, got "
            f"{getattr(embeddings, 'dtype', type(embeddings))} of shape {getattr(embeddings, 'shape', None)}"
        )
    embeddings = embeddings.astype(np.float32)
    length = np.linalg.norm(embeddings, axis=1)
    wrong = ~((length > 0) & np.isfinite(length))
    if wrong.any():
        category = wrong.argmax()
        raise InputError(
            f"{key}: {path}: expected embeddings that have a direction, got that of category {category}, whose length "
            f"is {length[category]}: make it anew"
        )
    return torch.from_numpy(embeddings)


def build_classifier(
    in_features: int, out_features: int, temperature: float, bias: bool, embeddings: torch.Tensor | None = None
) -> nn.Linear:
    """A :class:`NormedLinear`, with embeddings an :class:`EmbeddingClassifier`.

    For temperature 0 a plain linear layer, which always has a bias.

    Raises:
        InputError: a negative temperature, or a plain layer without bias or with embeddings.
    """
    if embeddings is not None:
        if temperature == 0:
            raise InputError(
                "MODEL.ROI_BOX_HEAD.CLS_NORM.EMBEDDINGS needs the normalised classifier: set CLS_NORM.TEMPERATURE "
                "above 0, such as 50"
            )
        return EmbeddingClassifier(in_features, embeddings, out_features, temperature, bias)
    if temperature != 0:
        return NormedLinear(in_features, out_features, temperature, bias)
    if not bias:
        raise InputError(
            "MODEL.ROI_BOX_HEAD.CLS_NORM.BIAS False needs the normalised classifier: set CLS_NORM.TEMPERATURE above 0"
        )
    return nn.Linear(in_features, out_features)
