"""Class weights that are learned: by what one step of the classifier does to a class-balanced loss.

Shapes as in :mod:`eql_d2.modeling.fast_rcnn`.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn
from torch.func import functional_call, grad

from eql_d2.errors import InputError
from eql_d2.losses import ClassificationLoss
from eql_d2.losses.base import ScoredByAnother

NODE = "MODEL.ROI_BOX_HEAD.META_REWEIGHT"
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # of Adam


class Samples(NamedTuple):
    """RoIs as a loss takes them.

    Args:
        features: (R, D) the classifier's input.
        gt_classes: (R,) int64 in [0, K].
        negatives: (R, K) bool or None.
    """

    features: torch.Tensor
    gt_classes: torch.Tensor
    negatives: torch.Tensor | None

    def of(self, chosen: torch.Tensor) -> "Samples":
        """Those at (n,) indices."""
        negatives = None if self.negatives is None else self.negatives[chosen]
        return Samples(self.features[chosen], self.gt_classes[chosen], negatives)


class MetaReweighter(ScoredByAnother):
    """Another loss whose RoIs weigh by their label, with weights w_c = exp(a_c) that training learns.

    In each step the images of the batch are two halves. On the first the classifier layer, theta, takes one virtual
    step with the weighted loss; a goes down the gradient of the stepped classifier's loss on the second half, in which
    every class present, background among them, counts alike:

        theta'(a) = theta - inner_lr d/dtheta mean_{i in first} exp(a_{y_i}) l(theta; i)
        a <- a - Adam(d/da mean_c mean_{i in second, y_i = c} l(theta'(a); i)),   then less its mean

    so it is the gradient of a gradient, through the classifier layer alone, by ``torch.func``. Then the batch is
    trained on with the new weights. The Meta Reweighter of "Balanced Meta-Softmax for Long-Tailed Visual Recognition"
    (Ren et al., NeurIPS 2020, arXiv:2007.10740), for a second stage in which the classifier alone is trained (cRT); the
    idea is of Meta-Weight-Net (Shu et al., NeurIPS 2019, arXiv:1902.07379) and "Learning to Reweight Examples" (Ren et
    al., ICML 2018, arXiv:1803.09050), that of the inner step MAML's (Finn et al., ICML 2017, arXiv:1703.03400).

    Deviations from BALMS: the class-balanced batch is the other half of the images, each class present with equal
    weight, where it draws one; the geometric mean of the weights is kept at 1, so that they cannot stand for a learning
    rate.

    ``log_weight`` and Adam's state are persistent buffers: a resumed run goes on with them.

    Args:
        loss: the loss that is weighted, without state of its own.
        lr: > 0, of Adam on a.
        inner_lr: > 0, of the virtual step.
    """

    log_weight: torch.Tensor  # (K + 1,) a
    mean: torch.Tensor  # (K + 1,) Adam's
    square: torch.Tensor
    updates: torch.Tensor  # () int64

    def __init__(self, loss: ClassificationLoss, *, lr: float = 0.01, inner_lr: float = 0.1):
        super().__init__(loss.num_classes)
        if loss.state_dict():
            raise InputError(
                f"{NODE} takes a loss without state, but {type(loss).__name__} has {list(loss.state_dict())}: the "
                f"virtual step would change it. Choose another, such as SoftmaxCrossEntropy, and CLS_LOSS.START_ITER 0"
            )
        if not (0 < lr < float("inf") and 0 < inner_lr < float("inf")):
            raise InputError(f"{NODE}.LR and {NODE}.INNER_LR must be above 0, got {lr} and {inner_lr}")
        self.loss, self.lr, self.inner_lr = loss, lr, inner_lr
        self.prior_prob = loss.prior_prob
        self.uses_negatives, self.needs_negatives = loss.uses_negatives, loss.needs_negatives
        for name in ("log_weight", "mean", "square"):
            self.register_buffer(name, torch.zeros(self.num_classes + 1))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @property
    def scoring(self) -> ClassificationLoss:  # type: ignore[override]  # an attribute elsewhere
        return self.loss

    def require_frequencies(self):
        return self.loss.require_frequencies()

    def compute(self, logits, rois):
        return self.loss.compute(logits, rois) * self.log_weight.exp().to(logits.dtype)[rois.gt_classes]

    def meta_gradient(self, classifier: nn.Module, first: Samples, second: Samples) -> torch.Tensor:
        """(K + 1,) d/da of the class-balanced loss on ``second`` after a step on ``first``."""
        theta = {name: parameter.detach() for name, parameter in classifier.named_parameters()}

        def losses(theta, samples: Samples):
            logits = functional_call(classifier, theta, (samples.features,))
            return self.loss(logits, samples.gt_classes, samples.features, samples.negatives, reduction="none")

        def weighted(theta, log_weight):
            return (losses(theta, first) * log_weight.exp()[first.gt_classes]).mean()

        def balanced_after_a_step(log_weight):
            gradient = grad(weighted)(theta, log_weight)
            stepped = {name: value - self.inner_lr * gradient[name] for name, value in theta.items()}
            return class_balanced_mean(losses(stepped, second), second.gt_classes, self.num_classes)

        return grad(balanced_after_a_step)(self.log_weight)

    @torch.no_grad()
    def learn(self, classifier: nn.Module, samples: Samples, num_rois: list[int]) -> None:
        """Update the weights.

        Args:
            classifier: the layer from features to logits.
            samples: of all images.
            num_rois: of each image.

        Raises:
            InputError: fewer than two images.
        """
        if len(num_rois) < 2:
            raise InputError(
                f"{NODE}.ENABLED is True: it needs at least two images in each process, half of them to step by and "
                f"half to look at, got {len(num_rois)}: raise SOLVER.IMS_PER_BATCH"
            )
        device = samples.features.device
        is_first = torch.tensor([i % 2 == 0 for i, n in enumerate(num_rois) for _ in range(n)], dtype=torch.bool)
        halves = [half.nonzero()[:, 0].to(device, non_blocking=True) for half in (is_first, ~is_first)]
        gradient = torch.zeros_like(self.log_weight)
        if all(map(len, halves)):
            with torch.autocast(device.type, enabled=False):
                samples = samples._replace(features=samples.features.detach().float())
                gradient = self.meta_gradient(classifier, *map(samples.of, halves))
        if comm.get_world_size() > 1:
            dist.all_reduce(gradient)
            gradient /= comm.get_world_size()
        self._adam_step(gradient)

    def _adam_step(self, gradient: torch.Tensor) -> None:
        self.updates += 1
        self.mean.lerp_(gradient, 1 - BETA_1)
        self.square.lerp_(gradient**2, 1 - BETA_2)
        mean, square = self.mean / (1 - BETA_1**self.updates), self.square / (1 - BETA_2**self.updates)
        self.log_weight -= self.lr * mean / (square.sqrt() + EPSILON)
        self.log_weight -= self.log_weight.mean()


def class_balanced_mean(losses: torch.Tensor, gt_classes: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Mean over the classes that there are, background among them, of the mean of each one's (R,) losses."""
    counts = losses.new_zeros(num_classes + 1).index_add(0, gt_classes, torch.ones_like(losses))
    return (losses / counts[gt_classes]).sum() / (counts > 0).sum()
