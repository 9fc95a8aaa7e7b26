"""Post-hoc correction of scores: at inference only, for a model trained with any loss.

What happens to the logits of a RoI, in this order: the loss's scores (:meth:`ClassificationLoss.probs`), with a
calibration in their place its corrected ones; of a cascade the mean over its stages; thresholds of categories; NMS.

Shapes as in :mod:`eql_d2.modeling.fast_rcnn`.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from eql_d2.data.frequencies import ClassFrequencies, Counts, FrequenciesNotFound
from eql_d2.data.json_files import read_json
from eql_d2.errors import InputError
from eql_d2.losses import ClassificationLoss, functional
from eql_d2.losses.base import at_least_fp32

NODE = "MODEL.ROI_BOX_HEAD.CALIBRATION"


@dataclass(frozen=True)
class LogitStatistics:
    """Mean and standard deviation of each logit over RoIs of training images.

    Args:
        mean, deviation: (num_logits,) float64.
        source: where they come from, for messages.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    source: str = "statistics passed as arguments"

    @classmethod
    def nothing(cls, num_logits: int) -> "LogitStatistics":
        """Those that normalise nothing."""
        return cls(torch.zeros(num_logits).double(), torch.ones(num_logits).double())

    @classmethod
    def from_file(cls, path: str) -> "LogitStatistics":
        """Read a file that ``eql-d2 sweep --calibration LogN`` has written into a run's folder."""
        content = read_json(path, required=("mean", "deviation"))
        mean, deviation = (torch.tensor(content[key], dtype=torch.float64) for key in ("mean", "deviation"))
        return cls(mean, deviation, str(path))


class Calibration(nn.Module):
    """Turns logits into other scores than the loss makes of them.

    Args:
        cls_loss: the loss whose scores are corrected; K categories.
        known: what it corrects by, :attr:`needs`.
        strength: >= 0; 0 changes nothing, bit for bit. None: :attr:`default_strength`.
    """

    default_strength = 1.0
    needs: type = ClassFrequencies

    def __init__(self, cls_loss: ClassificationLoss, known, strength: float | None = None):
        super().__init__()
        self.strength = self.default_strength if strength is None else strength
        if not isinstance(self.strength, (int, float)) or not 0 <= self.strength < float("inf"):
            raise InputError(f"{NODE}.STRENGTH must be in [0, inf), got {strength}")

    @classmethod
    def from_config(cls, cfg) -> dict:  # noqa: ARG003
        """Further keyword arguments."""
        return {}

    def corrected(self, cls_loss: ClassificationLoss, logits: torch.Tensor) -> torch.Tensor:
        """(R, num_logits) float64 logits -> (R, K + 1) scores, for a strength above 0."""
        raise NotImplementedError

    def forward(self, cls_loss: ClassificationLoss, logits: torch.Tensor) -> torch.Tensor:
        """(R, num_logits) logits -> (R, K + 1) corrected scores in [0, 1], background last."""
        if self.strength == 0:
            return cls_loss.probs(logits)
        # In float64, where a sigmoid keeps log-odds up to 36 instead of 16.
        return self.corrected(cls_loss, logits.double()).to(at_least_fp32(logits).dtype)


class PriorCalibration(Calibration):
    """Lowers the logit of each category by an offset and leaves background alone: z_j - o_j, z_bg.

    It is defined on the scores p that the loss makes of the logits, so it fits every loss:

    - scores that are one distribution over the categories and background (softmax losses; Seesaw loss) are divided and
      renormalised, p_j e^{-o_j} / (sum_k p_k e^{-o_k} + p_bg), which is the softmax of the lowered logits;
    - scores that are not (sigmoid losses, also where background has a sigmoid of its own) are lowered each on its
      own log-odds, sigmoid(log(p_j / (1 - p_j)) - o_j), which for a sigmoid is the sigmoid of the lowered logit.

    In a cascade each stage's scores are corrected, then averaged.

    Args:
        cls_loss: the loss whose scores are corrected; K categories.
        frequencies: counts of the training set, K categories, or what a loss takes for them.
        strength: >= 0, a factor of the offsets; 0 changes nothing. None: :attr:`default_strength`.
    """

    offset: torch.Tensor  # (K,) float64, o times the strength

    def __init__(
        self,
        cls_loss: ClassificationLoss,
        frequencies: Counts,
        strength: float | None = None,
    ):
        frequencies = ClassFrequencies.of(frequencies)
        super().__init__(cls_loss, frequencies, strength)
        if len(frequencies) != cls_loss.num_classes:
            raise InputError(
                f"{type(cls_loss).__name__} has {cls_loss.num_classes} classes, but {frequencies.source} "
                f"counts {len(frequencies)}"
            )
        self.of_distribution = scores_are_distribution(cls_loss)
        offset = self.strength * self.unit_offset(frequencies)
        self.register_buffer("offset", offset, persistent=False)

    def unit_offset(self, frequencies: ClassFrequencies) -> torch.Tensor:
        """(K,) float64 offsets o at strength 1."""
        raise NotImplementedError

    def corrected(self, cls_loss, logits):
        scores = cls_loss.probs(logits)
        categories, background = scores[:, :-1], scores[:, -1:]
        if self.of_distribution:
            log_scores = torch.cat([categories.log() - self.offset, background.log()], dim=1)
            return log_scores.softmax(dim=1)
        return torch.cat([self.lowered(categories), background], dim=1)

    def lowered(self, scores: torch.Tensor) -> torch.Tensor:
        """(R, K) scores that are no distribution -> the same, corrected each by itself."""
        return (scores.logit() - self.offset).sigmoid()


class LogitAdjustment(PriorCalibration):
    """softmax(z - tau log pi): the post-hoc form of logit adjustment.

    Equation 9 of "Long-Tail Learning via Logit Adjustment" (Menon et al., ICLR 2021, arXiv:2007.07314). As in
    :class:`eql_d2.losses.LogitAdjustedLoss`, pi counts objects, a category without any counts as one, and log pi is
    shifted to 0 for the most frequent category, which keeps its logit; rarer ones rise against it and background.

    Strength is tau, 1 by default, as in the paper.
    """

    default_strength = 1.0

    def unit_offset(self, frequencies):
        return functional.log_prior(frequencies.require_instance_count())


class NorCal(PriorCalibration):
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


class FRACAL(PriorCalibration):
    """Logit adjustment by how often a category is, and by how evenly its objects lie in the images.

    "Fractal Calibration for Long-tailed Object Detection" (Alexandridis et al., CVPR 2025, arXiv:2410.11774), by the
    authors' code. f_j is the share of training images with the category, Phi_j in [1, 2] the box-counting dimension of
    its objects' centres (:func:`eql_d2.data.fractal.fractal_dimensions`).

    - Scores that are a distribution: softmax(z_j - log10(K f_j)), divided by Phi_j^space and renormalised; background
      has Phi = 1 and no offset. So o_j = log10(K f_j) + space ln Phi_j.
    - Other scores p: p_j sigmoid(logit p_j - o_j), o_j = log10(K f_j) + log10(K Phi_j^space / sum_k Phi_k^space).

    Mind that the offsets are decimal logarithms, as in their code: at strength 1 the frequency term is 0.43 of that of
    logit adjustment.

    Strength is 1 by default, the authors'. It is a factor of o_j, and of other scores than a distribution the power
    of the second factor, so that 0 changes nothing.

    Args:
        cls_loss, frequencies, strength: as of :class:`PriorCalibration`; the frequencies know the number of images and,
            unless ``space`` is 0, the fractal dimensions.
        space: >= 0, lambda of the paper, 2 by default (the authors' configs); 0 is the frequency term alone.
    """

    default_strength = 1.0

    def __init__(self, cls_loss, frequencies, strength: float | None = None, *, space: float = 2.0):
        if not 0 <= space < float("inf"):
            raise InputError(f"{NODE}.SPACE must be in [0, inf), got {space}")
        self.space = space
        super().__init__(cls_loss, frequencies, strength)

    @classmethod
    def from_config(cls, cfg) -> dict:
        return {"space": cfg.MODEL.ROI_BOX_HEAD.CALIBRATION.SPACE}

    def unit_offset(self, frequencies):
        K = len(frequencies)
        # At least one image, of which a category without any has a share too.
        offset = (K * frequencies.frequency.clamp(min=1 / (frequencies.num_images or 1))).log10()
        if self.space == 0:
            return offset
        log_power = self.space * frequencies.require_fractal_dimension().log()
        if self.of_distribution:
            return offset + log_power
        return offset + (log_power - log_power.logsumexp(0) + math.log(K)) / math.log(10)

    def lowered(self, scores):
        # The offset has the strength in it, which is the power of the second factor here.
        second = (scores.logit() - self.offset / self.strength).sigmoid()
        return scores * second**self.strength


class LogN(Calibration):
    """Normalises the logits of the categories by their mean and deviation over the training set: as batch norm would.

    z'_j = (z_j - mean_j + min_k mean_k) / deviation_j for the categories, z'_bg = z_bg. From "Logit Normalization for
    Long-tail Object Detection" (Zhao, Teng, Wang, IJCV 2024, arXiv:2203.17020). The mean of a frequent category's logit
    is higher, so that it sinks. No counts are needed: what the training stream held, sampler included, shows in the
    logits of its RoIs.

    Strength is 1 by default, the authors'; (1 - strength) z + strength z' are the logits, so that 0 changes nothing.

    Deviation: the stages of a cascade have one pair of statistics together.

    Args:
        cls_loss: with a logit for each category, and at most one more, for background.
        statistics: of its logits.
        strength: >= 0.
    """

    default_strength = 1.0
    needs = LogitStatistics
    shift: torch.Tensor  # (num_logits,) float64
    scale: torch.Tensor

    def __init__(self, cls_loss: ClassificationLoss, statistics: LogitStatistics, strength: float | None = None):
        super().__init__(cls_loss, statistics, strength)
        K, width = cls_loss.num_classes, cls_loss.num_logits
        if width not in (K, K + 1):
            raise InputError(
                f"LogN normalises a logit for each category, but {type(cls_loss).__name__} has {width} logits for "
                f"{K} categories: choose another {NODE}.NAME"
            )
        if not len(statistics.mean) == len(statistics.deviation) == width:
            raise InputError(
                f"{statistics.source} has statistics of {len(statistics.mean)} logits, but {type(cls_loss).__name__} "
                f"has {width}: make them of this model (`eql-d2 sweep RUN --calibration LogN`)"
            )
        shift, scale = torch.zeros(width, dtype=torch.float64), torch.ones(width, dtype=torch.float64)
        shift[:K] = statistics.mean[:K] - statistics.mean[:K].min()
        scale[:K] = statistics.deviation[:K].clamp(min=1e-5)
        self.register_buffer("shift", shift, persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def corrected(self, cls_loss, logits):
        return cls_loss.probs(torch.lerp(logits, (logits - self.shift) / self.scale, self.strength))


CALIBRATIONS: dict[str, type[Calibration]] = {
    "LogitAdjustment": LogitAdjustment,
    "NorCal": NorCal,
    "FRACAL": FRACAL,
    "LogN": LogN,
}


def build_calibration(cfg, cls_loss: ClassificationLoss) -> Calibration | None:
    """The correction of the loss's scores that ``CALIBRATION.NAME`` names; None where it is empty.

    Raises:
        InputError: an unknown name, or no class counts or statistics to correct by.
    """
    node = cfg.MODEL.ROI_BOX_HEAD.CALIBRATION
    if not node.NAME:
        return None
    if node.NAME not in CALIBRATIONS:
        raise InputError(f"{NODE}.NAME is '{node.NAME}': it must be '' or one of {sorted(CALIBRATIONS)}")
    calibration = CALIBRATIONS[node.NAME]
    known = _statistics(cfg) if calibration.needs is LogitStatistics else _frequencies(cfg)
    try:
        return calibration(cls_loss, known, node.STRENGTH, **calibration.from_config(cfg))
    except FrequenciesNotFound as error:
        raise InputError(f"{NODE}.NAME {node.NAME} needs more to score: {error}") from error


def _frequencies(cfg) -> ClassFrequencies:
    try:
        return ClassFrequencies.from_config(cfg)
    except FrequenciesNotFound as error:
        name = cfg.MODEL.ROI_BOX_HEAD.CALIBRATION.NAME
        raise InputError(f"{NODE}.NAME {name} needs class counts to score: {error}") from error


def _statistics(cfg) -> LogitStatistics:
    path = cfg.MODEL.ROI_BOX_HEAD.CALIBRATION.STATISTICS
    if not path:
        raise InputError(
            f"{NODE}.NAME LogN needs {NODE}.STATISTICS, the file of the model's logits that `eql-d2 sweep RUN "
            f"--calibration LogN` writes into the run's folder"
        )
    return LogitStatistics.from_file(path)


@torch.no_grad()
def scores_are_distribution(cls_loss: ClassificationLoss) -> bool:
    """Whether the scores of the categories and background sum to 1, tried on two rows of logits."""
    device = next((buffer.device for buffer in cls_loss.buffers()), None)
    logits = torch.linspace(-1, 2, 2 * cls_loss.num_logits, dtype=torch.float64, device=device).view(2, -1)
    return bool(((cls_loss.probs(logits).sum(dim=1) - 1).abs() < 1e-6).all())
