"""Post-hoc correction of scores for the class prior: at inference only, for a model trained with any loss.

Shapes as in :mod:`eql_d2.modeling.fast_rcnn`.
"""

import torch
from torch import nn

from eql_d2.data.frequencies import ClassFrequencies, FrequenciesNotFound
from eql_d2.errors import InputError
from eql_d2.losses import ClassificationLoss, functional
from eql_d2.losses.base import at_least_fp32

NODE = "MODEL.ROI_BOX_HEAD.CALIBRATION"


class Calibration(nn.Module):
    """Lowers the logit of each category by an offset and leaves background alone: z_j - o_j, z_bg.

    It is defined on the scores p that the loss makes of the logits, so it fits every loss:

    - scores that are one distribution over the categories and background (softmax losses; Seesaw loss) are divided and
      renormalised, p_j e^{-o_j} / (sum_k p_k e^{-o_k} + p_bg), which is the softmax of the lowered logits;
    - scores that are not (sigmoid losses, also where background has a sigmoid of its own) are lowered each on its
      own log-odds, sigmoid(log(p_j / (1 - p_j)) - o_j), which for a sigmoid is the sigmoid of the lowered logit.

    In a cascade each stage's scores are corrected, then averaged.

    Args:
        cls_loss: the loss whose scores are corrected; K categories.
        frequencies: counts of the training set, K categories.
        strength: >= 0; 0 changes nothing. None: :attr:`default_strength`.
    """

    default_strength: float
    offset: torch.Tensor  # (K,) float64, o times the strength

    def __init__(
        self,
        cls_loss: ClassificationLoss,
        frequencies: ClassFrequencies,
        strength: float | None = None,
    ):
        super().__init__()
        if len(frequencies) != cls_loss.num_classes:
            raise InputError(
                f"{type(cls_loss).__name__} has {cls_loss.num_classes} classes, but {frequencies.source} "
                f"counts {len(frequencies)}"
            )
        self.strength = self.default_strength if strength is None else strength
        if not isinstance(self.strength, (int, float)) or not 0 <= self.strength < float("inf"):
            raise InputError(f"{NODE}.STRENGTH must be in [0, inf), got {strength}")
        self.of_distribution = scores_are_distribution(cls_loss)
        offset = self.strength * self.unit_offset(frequencies)
        self.register_buffer("offset", offset, persistent=False)

    def unit_offset(self, frequencies: ClassFrequencies) -> torch.Tensor:
        """(K,) float64 offsets o at strength 1."""
        raise NotImplementedError

    def forward(self, cls_loss: ClassificationLoss, logits: torch.Tensor) -> torch.Tensor:
        """(R, num_logits) logits -> (R, K + 1) corrected scores in [0, 1], background last."""
        if self.strength == 0:
            return cls_loss.probs(logits)
        # In float64, where a sigmoid keeps log-odds up to 36 instead of 16.
        scores = cls_loss.probs(logits.double())
        categories, background = scores[:, :-1], scores[:, -1:]
        if self.of_distribution:
            log_scores = torch.cat([categories.log() - self.offset, background.log()], dim=1)
            scores = log_scores.softmax(dim=1)
        else:
            scores = torch.cat([(categories.logit() - self.offset).sigmoid(), background], dim=1)
        return scores.to(at_least_fp32(logits).dtype)


class LogitAdjustment(Calibration):
    """softmax(z - tau log pi): the post-hoc form of logit adjustment.

    Equation 9 of "Long-Tail Learning via Logit Adjustment" (Menon et al., ICLR 2021, arXiv:2007.07314). As in
    :class:`eql_d2.losses.LogitAdjustedLoss`, pi counts objects, a category without any counts as one, and log pi is
    shifted to 0 for the most frequent category, which keeps its logit; rarer ones rise against it and background.

    Strength is tau, 1 by default, as in the paper.
    """

    default_strength = 1.0

    def unit_offset(self, frequencies):
        return functional.log_prior(frequencies.require_instance_count())


class NorCal(Calibration):
    """exp(z_j) / n_j^gamma, renormalised with background as it is.

    From "On Model Calibration for Long-Tailed Object Detection and Instance Segmentation" (Pan et al., NeurIPS 2021,
    arXiv:2107.02170). n_j counts images, as in the authors' code; a category without any counts as one. The rarest
    category keeps its logit; the more frequent ones sink, against it and background.

    Strength is gamma, 0.6 by default: the authors' code leaves it at 0, which corrects nothing, and the paper tunes it
    for each model.
    """

    default_strength = 0.6

    def unit_offset(self, frequencies):
        return frequencies.image_count.double().clamp(min=1).log()


CALIBRATIONS = {"LogitAdjustment": LogitAdjustment, "NorCal": NorCal}


def build_calibration(cfg, cls_loss: ClassificationLoss) -> Calibration | None:
    """The correction of the loss's scores that ``CALIBRATION.NAME`` names; None where it is empty.

    Raises:
        InputError: an unknown name, or no class counts to correct by.
    """
    node = cfg.MODEL.ROI_BOX_HEAD.CALIBRATION
    if not node.NAME:
        return None
    if node.NAME not in CALIBRATIONS:
        raise InputError(f"{NODE}.NAME is '{node.NAME}': it must be '' or one of {sorted(CALIBRATIONS)}")
    try:
        frequencies = ClassFrequencies.from_config(cfg)
    except FrequenciesNotFound as error:
        raise InputError(f"{NODE}.NAME {node.NAME} needs class counts to score: {error}") from error
    return CALIBRATIONS[node.NAME](cls_loss, frequencies, node.STRENGTH)


@torch.no_grad()
def scores_are_distribution(cls_loss: ClassificationLoss) -> bool:
    """Whether the scores of the categories and background sum to 1, tried on two rows of logits."""
    device = next((buffer.device for buffer in cls_loss.buffers()), None)
    logits = torch.linspace(-1, 2, 2 * cls_loss.num_logits, dtype=torch.float64, device=device).view(2, -1)
    return bool(((cls_loss.probs(logits).sum(dim=1) - 1).abs() < 1e-6).all())
