"""What every classification loss is: the contract between a loss and the box predictor.

Shape shorthand of this package:

    R: number of sampled RoIs of the batch, foreground and background together
    K: number of foreground categories; background is index K
    logits: (R, num_logits) scores z in [-inf, inf], whose width the loss decides
    gt_classes: (R,) int64 labels in [0, K]
"""

import copy
import logging
import math
import operator
import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from eql_d2.data.frequencies import ClassFrequencies, Counts, FrequenciesNotFound, Tail, TailRule
from eql_d2.errors import InputError
from eql_d2.losses import fused
from eql_d2.losses.hyper_parameters import arguments_from_config, defaults
from eql_d2.losses.once import log_once

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class RoIs(NamedTuple):
    """What is known of R RoIs besides their logits.

    Args:
        gt_classes: (R,) int64 in [0, K]; K is background.
        features: (R, D) the classifier's input, or None.
        negatives: (R, K) bool, True where it is known whether the RoI is of the category, or None: all are known.
        generator: of what the loss draws for them; None: torch's global one.
    """

    gt_classes: torch.Tensor
    features: torch.Tensor | None = None
    negatives: torch.Tensor | None = None
    generator: torch.Generator | None = None


class ClassificationLoss(nn.Module):
    """Base of all losses: checks and upcasts its input, then calls :meth:`compute`.

    A loss of your own is one file: a subclass of :class:`SigmoidLoss`, :class:`SoftmaxLoss` or this class,
    registered in ``CLS_LOSS_REGISTRY``, with an ``__init__`` whose hyper-parameters are keyword-only and have defaults.
    Its config node is derived from that signature.

    Masks and weights that follow from the arguments are non-persistent buffers; what a loss accumulates
    during training is a persistent buffer. Counts and sums are int64 and float64, so a whole-model ``.half()`` is
    not supported (use mixed precision).

    Args:
        num_classes: K, the number of foreground categories.
    """

    tail: torch.Tensor  # see register_tail_mask
    prior_prob: float | None = None  # p in (0, 1), the score every category starts with: see initial_bias
    uses_negatives = False  # whether `negatives` of a call change anything
    needs_negatives = False  # whether a call without them is an error
    compiled: bool | None = None  # whether a step uses torch.compile (CLS_LOSS.COMPILE); None: this loss cannot

    _arguments: dict

    def __new__(cls, *args, **kwargs):  # noqa: ARG004
        loss = super().__new__(cls)
        object.__setattr__(loss, "_arguments", kwargs)  # for the repr
        return loss

    def extra_repr(self) -> str:
        arguments = {"num_classes": self.num_classes, **defaults(type(self)), **self._arguments}
        return ", ".join(f"{name}={_shown(value)}" for name, value in arguments.items())

    def __init__(self, num_classes: int):
        super().__init__()
        if not hasattr(num_classes, "__index__") or num_classes < 1:
            raise InputError(f"num_classes must be a whole number of at least 1, got {num_classes!r}")
        self.num_classes = operator.index(num_classes)
        self._no_frequencies: FrequenciesNotFound | None = None

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Arguments from ``MODEL.ROI_BOX_HEAD.CLS_LOSS.<class name>`` and the counts of ``DATASETS.TRAIN``."""
        return arguments_from_config(cfg, cls)

    @property
    def num_logits(self) -> int:
        """Width of ``cls_score``."""
        raise NotImplementedError

    @property
    def initial_bias(self) -> float:
        """What every logit starts from: log(p / (1 - p)) with :attr:`prior_prob` p, 0 without one."""
        p = self.prior_prob
        return 0.0 if p is None else -math.log((1 - p) / p)

    def forward(
        self, logits, gt_classes, features=None, negatives=None, *, reduction: str = "mean", generator=None
    ) -> torch.Tensor:
        """
        Args:
            logits: (R, num_logits) float; fp16 and bf16 are computed in fp32, float64 stays. In plain classification,
                where no RoI is background, (R, K) for a :class:`SoftmaxLoss` too.
            gt_classes: (R,) integers in [0, K]; in plain classification in [0, K).
            features: (R, D) the classifier's input, for the losses that weigh by it.
            negatives: (R, K) bool, True where it is known whether the RoI is of the category: its own category, and
                those that its image was checked for. In a sigmoid loss the others take no part. None: all are
                known. A softmax has no term of its own for a category, and softmax losses do not use it.
            reduction: "mean" over the RoIs, their "sum", or "none": (R,), the loss of each.
            generator: a ``torch.Generator`` on the logits' device, for the losses that draw; None: torch's global one.

        Returns:
            The loss, at least fp32. Without RoIs it is zero, with a gradient path (DDP needs one).

        Raises:
            InputError: logits of another width than :attr:`num_logits`, labels, features or negatives of another number
                than RoIs, types that are none of these, labels out of range, no negatives where the loss needs them, or
                a loss that cannot train because its class frequencies were not found. On a GPU, where a question costs
                a wait, labels out of range are a device-side assertion instead.
        """
        logits, rois = self.checked(logits, RoIs(gt_classes, features, negatives, generator), reduction)
        if len(logits) == 0:
            self.without_rois()
            return reduced(logits.sum(dim=1), reduction)
        losses = self.compute(logits, rois)
        if losses.shape != logits.shape[:1]:
            raise InputError(
                f"{self._name}.compute must return the loss of each of {len(logits)} RoIs, got the shape "
                f"{tuple(losses.shape)}"
            )
        return reduced(losses, reduction)

    @property
    def _name(self) -> str:
        """What its errors call it: as the one who chose it does."""
        return type(self).__name__

    def checked(self, logits, rois: RoIs, reduction: str) -> tuple[torch.Tensor, RoIs]:
        """What a call is given, as :meth:`compute` takes it, or an InputError; see :meth:`forward`."""
        if reduction not in ("mean", "sum", "none"):
            raise InputError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
        name, K = self._name, self.num_classes
        if not isinstance(logits, torch.Tensor) or logits.dim() != 2 or not logits.is_floating_point():
            raise InputError(
                f"{name} takes logits as a tensor (R, {self.num_logits}) of a float type, got {_kind(logits)}"
            )
        rois = rois._replace(gt_classes=self._checked_labels(logits, rois.gt_classes))
        logits = at_least_fp32(self.checked_width(logits))
        self.require_frequencies()
        if rois.features is not None and rois.features.shape[:1] != logits.shape[:1]:
            raise InputError(f"{name} takes features of each of {len(logits)} RoIs, got {_kind(rois.features)}")
        if rois.negatives is None:
            if self.needs_negatives:
                raise InputError(
                    f"{name} as it is set needs negatives: call it with the (R, K) bool tensor of what is known"
                )
        elif rois.negatives.dtype != torch.bool or rois.negatives.shape != (logits.shape[0], K):
            raise InputError(
                f"{name} takes negatives as a bool tensor ({len(logits)}, {K}) of what is known, got "
                f"{_kind(rois.negatives)}"
            )
        return logits, rois

    def _checked_labels(self, logits, gt_classes) -> torch.Tensor:
        """(R,) int64 labels of (R, C) logits, or an InputError."""
        K = self.num_classes
        if not isinstance(gt_classes, torch.Tensor) or gt_classes.dtype not in INTEGERS:
            raise InputError(f"{self._name} takes gt_classes as a tensor of an integer type, got {_kind(gt_classes)}")
        if gt_classes.shape != logits.shape[:1]:
            raise InputError(
                f"{self._name} takes one label for each row of logits: logits are {tuple(logits.shape)}, "
                f"gt_classes {tuple(gt_classes.shape)}"
            )
        gt_classes = gt_classes.long()
        device = gt_classes.device.type
        if gt_classes.shape[0] == 0 or device not in ("cpu", "cuda") or fused.is_transformed():
            return gt_classes
        background = int(logits.shape[1] == self.num_logits)  # (R, K) logits of plain classification have none
        low, high = gt_classes.aminmax()
        if device == "cuda":  # asked without a wait
            in_range = (low >= 0) & (high < K + background)
            torch._assert_async(in_range, f"{self._name}: gt_classes must be in [0, {K + background})")
        elif int(low) < 0 or int(high) >= K + background:
            raise InputError(
                f"{self._name} of {K} classes takes labels in [0, {K - 1 + background}]"
                f"{f' ({K}: background)' * background}, got {int(low)} to {int(high)}"
            )
        return gt_classes

    def compute(self, logits, rois: RoIs) -> torch.Tensor:
        """(R,) the loss of each RoI, whose mean is the loss, for R > 0 and logits in fp32 or float64."""
        raise NotImplementedError

    def without_rois(self) -> None:
        """Called in place of :meth:`compute` for R = 0.

        Here a loss that exchanges statistics between processes takes part, or the processes that have RoIs would wait.
        """

    def plain(self) -> "ClassificationLoss":
        """The cross-entropy of this loss's logits: what a loss that starts later begins with, see :class:`LateStart`.

        Raises:
            InputError: no plain cross-entropy has such logits.
        """
        raise InputError(
            f"{self._name} cannot start later: its {self.num_logits} logits for {self.num_classes} classes "
            f"are none that plain cross-entropy could train. Start it at once (CLS_LOSS.START_ITER 0)"
        )

    def checked_width(self, logits) -> torch.Tensor:
        """Logits as :meth:`compute` takes them: of width :attr:`num_logits`, or an InputError."""
        if logits.shape[1] != self.num_logits:
            raise InputError(
                f"{self._name} of {self.num_classes} classes takes {self.num_logits} logits per RoI, got "
                f"{logits.shape[1]}: cls_score must be as wide as the loss says"
            )
        return logits

    def probs(self, logits) -> torch.Tensor:
        """(R, num_logits) logits -> (R, K + 1) scores in [0, 1], background last, at least fp32."""
        raise NotImplementedError

    def predicted_classes(self, probs) -> torch.Tensor:
        """(R, K + 1) scores of :meth:`probs` -> (R,) classes in [0, K], for accuracy logs."""
        return probs.argmax(dim=1)

    def register_derived(
        self,
        name: str,
        frequencies: Counts | FrequenciesNotFound,
        derive: Callable[[ClassFrequencies], torch.Tensor],
    ) -> None:
        """Keep ``derive(frequencies)`` as a non-persistent buffer on the model's device.

        A model that only scores is also built where no training annotations are: then ``frequencies`` is the error
        that says what was looked for; the buffer is None, and training raises that error.

        Args:
            frequencies: counts of K categories; a sequence of samples of each class will do.

        Raises:
            InputError: counts of another number of categories, or without what ``derive`` asks of them.
        """
        if isinstance(frequencies, FrequenciesNotFound):
            self._no_frequencies = frequencies
            self.register_buffer(name, None, persistent=False)
            return
        frequencies = ClassFrequencies.of(frequencies)
        if len(frequencies) != self.num_classes:
            raise InputError(
                f"{self._name} has {self.num_classes} classes, but {frequencies.source} counts {len(frequencies)}"
            )
        with torch.device("cpu"):  # so that a model without data (meta) is built, too
            value = derive(frequencies)
        self.register_buffer(name, value.to(torch.get_default_device()), persistent=False)

    def register_tail_mask(self, frequencies: Counts | FrequenciesNotFound, tail: Tail) -> None:
        """Keep the tail, T of the EQL paper, as :attr:`tail_mask`, and log what it selects."""
        rule = TailRule.of(tail)

        def logged_mask(frequencies: ClassFrequencies) -> torch.Tensor:
            mask = rule.mask(frequencies)
            log_once(logging.INFO, rule.describe(frequencies))
            if "f" in (g for g, is_tail in zip(frequencies.groups, mask.tolist()) if is_tail):
                log_once(
                    logging.WARNING,
                    f"the tail rule ({rule}) takes frequent classes (more than 100 images) for tail on "
                    f"{frequencies.source}: a lambda of another dataset?",
                )
            return mask.to(torch.uint8)

        self.register_derived("tail", frequencies, logged_mask)

    @property
    def tail_mask(self) -> torch.Tensor:
        """(K,) bool; kept as uint8, of which averages of models (``AveragedModel(use_buffers=True)``) can be made."""
        return self.tail.bool()

    def require_frequencies(self) -> None:
        """Raise if this loss needs class frequencies to train and was built without."""
        if self._no_frequencies is not None:
            raise InputError(
                f"{self._name} needs class frequencies to train: {self._no_frequencies}"
            ) from self._no_frequencies


class ScoredByAnother(ClassificationLoss):
    """A loss whose logits mean what they mean in another one, ``scoring``: as many, and the same scores and classes."""

    scoring: ClassificationLoss

    @property
    def num_logits(self) -> int:
        return self.scoring.num_logits

    def checked_width(self, logits):
        if logits.shape[1] not in (self.num_classes, self.num_logits):  # an error that names this loss
            return super().checked_width(logits)
        return self.scoring.checked_width(logits)

    def probs(self, logits):
        return self.scoring.probs(logits)

    def predicted_classes(self, probs):
        return self.scoring.predicted_classes(probs)


class SigmoidLoss(ClassificationLoss):
    """K independent binary classifiers; background is the absence of all, so it has no logit.

    Trained by cross-entropy, unless a subclass computes another loss.

    Args:
        num_classes: K.
        prior_prob: p in (0, 1), the score every category starts with.
    """

    prior_prob: float
    uses_negatives = True

    def __init__(self, num_classes: int, *, prior_prob: float):
        super().__init__(num_classes)
        if not 0 < prior_prob < 1:
            raise InputError(f"prior_prob must be in (0, 1), got {prior_prob}")
        self.prior_prob = prior_prob

    @property
    def num_logits(self) -> int:
        return self.num_classes

    def compute(self, logits, rois):
        return fused.sigmoid_cross_entropy(logits, rois.gt_classes, negatives=rois.negatives, compiled=self.compiled)

    def plain(self) -> ClassificationLoss:
        return SigmoidLoss(self.num_classes, prior_prob=self.prior_prob)

    def probs(self, logits) -> torch.Tensor:
        """Sigmoid scores and a zero background column, since Detectron2 drops the last column."""
        return F.pad(at_least_fp32(logits).sigmoid(), (0, 1))

    def predicted_classes(self, probs) -> torch.Tensor:
        """The best category, or background where no score exceeds 0.5."""
        best, classes = probs[:, : self.num_classes].max(dim=1)
        return torch.where(best > 0.5, classes, self.num_classes)


class SoftmaxLoss(ClassificationLoss):
    """One distribution over the K categories and background, column K.

    Trained by cross-entropy, unless a subclass computes another loss.

    Plain classification has no background: there the loss and :meth:`probs` take (R, K) logits, with labels in
    [0, K), and mean the softmax over K.
    """

    def __init__(self, num_classes: int):
        super().__init__(num_classes)

    @property
    def num_logits(self) -> int:
        return self.num_classes + 1

    def compute(self, logits, rois):
        return F.cross_entropy(logits, rois.gt_classes, reduction="none")

    def plain(self) -> ClassificationLoss:
        return SoftmaxLoss(self.num_classes)

    def checked_width(self, logits) -> torch.Tensor:
        """(R, K) logits get a background that cannot be: -inf, whose exponential is exactly 0."""
        if logits.shape[1] != self.num_classes:
            return super().checked_width(logits)
        return torch.cat([logits, logits.new_full((len(logits), 1), -torch.inf)], dim=1)

    def probs(self, logits) -> torch.Tensor:
        """Softmax scores; of (R, K) logits with a zero background column."""
        scores = at_least_fp32(logits).softmax(dim=1)
        if logits.shape[1] == self.num_classes:
            scores = torch.cat([scores, scores.new_zeros(len(scores), 1)], dim=1)
        return scores


def _shown(value) -> str:
    """An argument for the repr; of a sequence of a number for each category the first ones."""
    return reprlib.repr(value) if isinstance(value, list | tuple) else str(value)


def _kind(x) -> str:
    """Type and shape of a tensor, or the type of anything else."""
    return f"{x.dtype} {tuple(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__


def at_least_fp32(x: torch.Tensor) -> torch.Tensor:
    """fp16 and bf16 to fp32; fp32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def reduced(losses: torch.Tensor, reduction: str) -> torch.Tensor:
    """The "mean" of (R,) losses, 0 where R is, their "sum", or with "none" themselves."""
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" and len(losses) else losses.sum()


def losses_of(model: nn.Module) -> list[ClassificationLoss]:
    """The losses of a model, in its order: one for each stage of a cascade. A loss within a loss is a part of it."""
    if isinstance(model, ClassificationLoss):
        return [model]
    return [loss for child in model.children() for loss in losses_of(child)]


@contextmanager
def keeping_state(model: nn.Module) -> Iterator[None]:
    """Whatever happens to ``model`` within this context, its losses come out of it with the state they had."""
    states = [(loss, copy.deepcopy(loss.state_dict())) for loss in losses_of(model)]
    yield
    for loss, state in states:
        loss.load_state_dict(state)
