"""What every classification loss is: the contract between a loss and the box predictor.

Shape shorthand of this package:

    R: number of sampled RoIs of the batch, foreground and background together
    K: number of foreground categories; background is index K
    logits: (R, num_logits) scores z in [-inf, inf], whose width the loss decides
    gt_classes: (R,) int64 labels in [0, K]
"""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from detectron2.utils.logger import log_first_n
from torch import nn
from torch.nn import functional as F

from eql_d2.data.frequencies import ClassFrequencies, FrequenciesNotFound, TailRule
from eql_d2.errors import InputError
from eql_d2.losses import fused
from eql_d2.losses.hyper_parameters import arguments_from_config


class ClassificationLoss(nn.Module):
    """Base of all losses: checks and upcasts its input, then calls :meth:`compute`.

    A loss of your own is one file: a subclass of :class:`SigmoidLoss`, :class:`SoftmaxLoss` or this class,
    registered in ``CLS_LOSS_REGISTRY``, with ``@configurable`` on an ``__init__`` whose hyper-parameters are
    keyword-only and have defaults. Its config node is derived from that signature.

    Masks and weights that follow from the arguments are non-persistent buffers; what a loss accumulates
    during training is a persistent buffer. Counts and sums are int64 and float64, so a whole-model ``.half()`` is
    not supported (use mixed precision).

    Args:
        num_classes: K, the number of foreground categories.
    """

    steps: torch.Tensor  # see count_steps
    tail_mask: torch.Tensor  # see register_tail_mask
    prior_prob: float | None = None  # p in (0, 1): cls_score.bias starts at -log((1 - p) / p); None: at 0
    uses_negatives = False  # whether `negatives` of a call change anything
    needs_negatives = False  # whether a call without them is an error
    start_iter = 0  # see start_at
    steps_done = 0  # see count_steps
    calls_per_iteration = 1  # where gradients are accumulated, the number of batches: see iterations_done
    compiled: bool | None = None  # whether a step uses torch.compile (CLS_LOSS.COMPILE); None: this loss cannot

    def __init__(self, num_classes: int):
        super().__init__()
        if num_classes < 1:
            raise InputError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self._no_frequencies: FrequenciesNotFound | None = None

    @classmethod
    def from_config(cls, cfg) -> dict:
        """Arguments from ``MODEL.ROI_BOX_HEAD.CLS_LOSS.<class name>`` and the counts of ``DATASETS.TRAIN``."""
        return arguments_from_config(cfg, cls)

    @property
    def num_logits(self) -> int:
        """Width of ``cls_score``."""
        raise NotImplementedError

    def forward(self, logits, gt_classes, features=None, negatives=None) -> torch.Tensor:
        """
        Args:
            logits: (R, num_logits) float; fp16 and bf16 are computed in fp32, float64 stays. In plain classification,
                where no RoI is background, (R, K) for a :class:`SoftmaxLoss` too.
            gt_classes: (R,) int64 in [0, K].
            features: (R, D) the classifier's input, for the losses that weigh by it.
            negatives: (R, K) bool, True where it is known whether the RoI is of the category: its own category, and
                those that its image was checked for. In a sigmoid loss the others take no part. None: all are
                known. A softmax has no term of its own for a category, and softmax losses do not use it.

        Returns:
            Scalar loss, at least fp32. Without RoIs it is zero, with a gradient path (DDP needs one).

        Raises:
            InputError: logits of another width than :attr:`num_logits`, no negatives where the loss needs them, or a
                loss that cannot train because its class frequencies were not found.
        """
        logits = at_least_fp32(self.checked_width(logits))
        self.require_frequencies()
        if self.needs_negatives and negatives is None:
            raise InputError(
                f"{type(self).__name__} as it is set needs negatives: call it with the (R, K) bool tensor of what is "
                f"known"
            )
        if len(logits) == 0:
            if self.has_started:
                self.without_rois()
            loss = logits.sum() * 0.0
        elif self.has_started:
            loss = self.compute(logits, gt_classes, features, negatives)
        else:
            loss = self.plain(logits, gt_classes, features, negatives)
        if self.training and "steps" in self._buffers:
            self._count_step()
        return loss

    def compute(self, logits, gt_classes, features, negatives) -> torch.Tensor:
        """The loss itself, for R > 0 and logits in fp32 or float64; arguments as in :meth:`forward`."""
        raise NotImplementedError

    def without_rois(self) -> None:
        """Called in place of :meth:`compute` for R = 0.

        Here a loss that exchanges statistics between processes takes part, or the processes that have RoIs would wait.
        """

    def plain(self, logits, gt_classes, features, negatives) -> torch.Tensor:
        """The cross-entropy that a loss which starts later begins with; arguments as in :meth:`compute`."""
        raise NotImplementedError

    @property
    def has_started(self) -> bool:
        """Whether :meth:`compute` is at work; before, it is :meth:`plain`."""
        return self.iterations_done >= self.start_iter

    @property
    def iterations_done(self) -> int:
        """How many optimizer steps this loss, if it counts, has been trained for."""
        return self.steps_done // self.calls_per_iteration

    def start_at(self, start_iter: int) -> "ClassificationLoss":
        """Train with plain cross-entropy for the first ``start_iter`` iterations; returns the loss itself.

        For losses that fine-tune what plain training has learned. ``MODEL.ROI_BOX_HEAD.CLS_LOSS.START_ITER`` in YAML.

        Raises:
            InputError: a number below 0, or a loss whose logits no plain cross-entropy can train.
        """
        name = type(self).__name__
        if start_iter < 0:
            raise InputError(f"START_ITER must be >= 0, got {start_iter}")
        if start_iter > 0 and type(self).plain is ClassificationLoss.plain:
            raise InputError(
                f"{name} cannot start later: its {self.num_logits} logits for {self.num_classes} classes are none that "
                f"plain cross-entropy could train. Set CLS_LOSS.START_ITER 0"
            )
        self.start_iter = start_iter
        self.count_steps()
        return self

    def count_steps(self) -> None:
        """From now on count the calls in training in ``steps``, a persistent int64 buffer, and in ``steps_done``.

        With RoIs or without, so that all processes count alike; each stage of a cascade counts its own. ``steps_done``
        is the same number on the host: reading the buffer would wait for the GPU in every step.
        """
        if "steps" not in self._buffers:
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def _count_step(self) -> None:
        if self.steps_done == self.start_iter * self.calls_per_iteration > 0:
            log_first_n(
                logging.INFO,
                f"{type(self).__name__} takes over from plain cross-entropy after {self.start_iter} iterations",
                name=__name__,
                key="message",
            )
        self.steps_done += 1
        self.steps += 1

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        if "steps" in self._buffers:
            self.steps_done = int(self.steps)

    def checked_width(self, logits) -> torch.Tensor:
        """Logits as :meth:`compute` takes them: of width :attr:`num_logits`, or an InputError."""
        if logits.shape[1] != self.num_logits:
            raise InputError(
                f"{type(self).__name__} of {self.num_classes} classes takes {self.num_logits} logits per RoI, got "
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
        frequencies: ClassFrequencies | FrequenciesNotFound,
        derive: Callable[[ClassFrequencies], torch.Tensor],
    ) -> None:
        """Keep ``derive(frequencies)`` as a non-persistent buffer on the model's device.

        A model that only scores is also built where no training annotations are, or only some of the counts:
        then ``frequencies`` is, or ``derive`` raises, the error that says what was looked for; the buffer
        is None, and training raises that error.
        """
        value = None
        try:
            if isinstance(frequencies, FrequenciesNotFound):
                raise frequencies
            if len(frequencies) != self.num_classes:
                raise InputError(
                    f"{type(self).__name__} has {self.num_classes} classes, but {frequencies.source} counts "
                    f"{len(frequencies)}"
                )
            value = derive(frequencies)
        except FrequenciesNotFound as error:
            self._no_frequencies = error
        self.register_buffer(name, value, persistent=False)

    def register_tail_mask(self, frequencies: ClassFrequencies | FrequenciesNotFound, tail: TailRule) -> None:
        """Keep the tail, T of the EQL paper, as the (K,) bool buffer ``tail_mask``, and log what it selects."""

        def logged_mask(frequencies: ClassFrequencies) -> torch.Tensor:
            mask = tail.mask(frequencies)
            log_first_n(logging.INFO, tail.describe(frequencies), name=__name__, key="message")
            if "f" in (g for g, is_tail in zip(frequencies.groups, mask.tolist()) if is_tail):
                log_first_n(
                    logging.WARNING,
                    f"the tail rule ({tail}) takes frequent classes (more than 100 images) for tail on "
                    f"{frequencies.source}: a lambda of another dataset?",
                    name=__name__,
                    key="message",
                )
            return mask

        self.register_derived("tail_mask", frequencies, logged_mask)

    def require_frequencies(self) -> None:
        """Raise if this loss needs class frequencies to train and was built without."""
        if self._no_frequencies is not None:
            raise InputError(
                f"{type(self).__name__} needs class frequencies to train: {self._no_frequencies}"
            ) from self._no_frequencies


class SigmoidLoss(ClassificationLoss):
    """K independent binary classifiers; background is the absence of all, so it has no logit.

    Args:
        num_classes: K.
        prior_prob: p in (0, 1), the score every category starts with.
    """

    uses_negatives = True

    def __init__(self, num_classes: int, *, prior_prob: float):
        super().__init__(num_classes)
        if not 0 < prior_prob < 1:
            raise InputError(f"prior_prob must be in (0, 1), got {prior_prob}")
        self.prior_prob = prior_prob

    @property
    def num_logits(self) -> int:
        return self.num_classes

    def plain(self, logits, gt_classes, features, negatives):
        return fused.sigmoid_cross_entropy(logits, gt_classes, negatives=negatives)

    def probs(self, logits) -> torch.Tensor:
        """Sigmoid scores and a zero background column, since Detectron2 drops the last column."""
        scores = at_least_fp32(logits).sigmoid()
        return torch.cat([scores, scores.new_zeros(len(scores), 1)], dim=1)

    def predicted_classes(self, probs) -> torch.Tensor:
        """The best category, or background where no score exceeds 0.5."""
        best, classes = probs[:, : self.num_classes].max(dim=1)
        return torch.where(best > 0.5, classes, self.num_classes)


class SoftmaxLoss(ClassificationLoss):
    """One distribution over the K categories and background, column K.

    Plain classification has no background: there the loss and :meth:`probs` take (R, K) logits, with labels in
    [0, K), and mean the softmax over K.
    """

    @property
    def num_logits(self) -> int:
        return self.num_classes + 1

    def plain(self, logits, gt_classes, features, negatives):
        return F.cross_entropy(logits, gt_classes)

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


def at_least_fp32(x: torch.Tensor) -> torch.Tensor:
    """fp16 and bf16 to fp32; fp32 and float64 as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def losses_of(model: nn.Module) -> list[ClassificationLoss]:
    """The losses within a model, in its order: one for each stage of a cascade."""
    return [module for module in model.modules() if isinstance(module, ClassificationLoss)]


@contextmanager
def keeping_state(model: nn.Module) -> Iterator[None]:
    """Whatever happens to ``model`` within this context, its losses come out of it with the state they had."""
    states = [(loss, copy.deepcopy(loss.state_dict())) for loss in losses_of(model)]
    yield
    for loss, state in states:
        loss.load_state_dict(state)
