"""What our one-stage detectors have in common: the classification loss as an argument, and fast post-processing.

Shape shorthand:

    N: number of images
    A: anchors of a place
    K: number of foreground categories; background is index K
    C: logits of an anchor, as many as the loss says
    R: number of anchors of an image, of all levels together; Ri: of level i
    predictions: what the head returns; first the (N, A * C, Hi, Wi) logits, then the (N, A * 4, Hi, Wi) deltas
"""

from typing import Any

import torch
from detectron2.layers import cat
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import nn

from eql_d2.errors import InputError
from eql_d2.losses import ClassificationLoss, build_cls_loss
from eql_d2.losses.hyper_parameters import NODE
from eql_d2.modeling.calibration import Calibration, build_calibration
from eql_d2.modeling.inference import EncodedBoxes, dense_inference_single_image

DEFAULT_LOSS = "SigmoidFocalLoss"  # Detectron2's own


class LongTailDenseMixin:
    """A dense detector of Detectron2's with its classification loss taken out and made an argument.

    The loss decides how many logits an anchor has, their initial bias, the training loss and the scores. It is divided
    by the moving average of the number of foreground anchors, as in Detectron2, and never sees an ignored anchor.

    Every loss fits whose scores start low (``prior_prob`` below 1/2): all sigmoid losses of K logits, and EQL v2 and
    ACSL, whose column of background starts high, at 1 - p. Losses that start undecided do not, softmax above all: their
    hundred thousand anchors of background would be a loss of thousands for each object.
    """

    cls_score_name = "head.cls_score"  # of the classifier, within this module
    initial_normalizer: float  # Detectron2's own

    num_classes: int
    max_detections_per_image: int
    head: Any
    test_score_thresh: float
    cls_loss: ClassificationLoss
    calibration: Calibration | None
    loss_normalizer: torch.Tensor

    def take_loss(self, cls_loss: ClassificationLoss, calibration: Calibration | None) -> None:
        """To be called at the end of ``__init__``.

        Raises:
            InputError: a loss that is none for a dense detector, or of another number of classes.
        """
        if cls_loss.num_classes != self.num_classes:
            raise InputError(
                f"the loss {type(cls_loss).__name__} has {cls_loss.num_classes} classes, {type(self).__name__} "
                f"{self.num_classes}"
            )
        require_dense(cls_loss, type(self).__name__)
        self.cls_loss = cls_loss
        self.calibration = calibration
        self.head.cls_score = fitted_classifier(self.head, cls_loss)
        # Detectron2 keeps it as a number, which a resumed run would start anew.
        normalizer = torch.tensor(self.initial_normalizer, dtype=torch.float64)
        self.register_buffer("loss_normalizer", normalizer)  # type: ignore[attr-defined]  # that of nn.Module

    @property
    def cls_score(self) -> nn.Conv2d:
        return self.head.cls_score

    @property
    def test_topk_per_image(self) -> int:
        """The most detections of an image, by the name that a box predictor has for it; below 0: no limit."""
        return self.max_detections_per_image

    @test_topk_per_image.setter
    def test_topk_per_image(self, limit: int) -> None:
        self.max_detections_per_image = limit

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """Weights of Detectron2's detector have no normalizer: it starts anew."""
        state_dict.setdefault(f"{prefix}loss_normalizer", self.loss_normalizer)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)  # type: ignore[misc]

    def anchors_last(self, predictions) -> list:
        """Views of the logits as (N, Hi, Wi, A, C), and the other predictions as Detectron2 has them."""
        logits, *others = predictions
        C = self.cls_loss.num_logits
        views = [x.unflatten(1, (-1, C)).permute(0, 3, 4, 1, 2) for x in logits]
        widths = [4, *(1 for _ in others[1:])]
        return [views, *self._transpose_dense_predictions(others, widths)]  # type: ignore[attr-defined]

    def normalised_labels(self, gt_labels: list) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the losses of both detectors begin with.

        Args:
            gt_labels: of each image (R,) int64 in [-1, K].

        Returns:
            the labels as (N, R), (N, R) bool foreground, and the moving average of the number of foreground anchors,
            which the losses are divided by.
        """
        labels = torch.stack(gt_labels)
        foreground = (labels >= 0) & (labels != self.num_classes)
        num_foreground = foreground.sum().item()
        get_event_storage().put_scalar("num_pos_anchors", num_foreground / len(labels))
        average = self._ema_update(  # type: ignore[attr-defined]  # that of DenseDetector
            "loss_normalizer", max(num_foreground, 1), self.initial_normalizer
        )
        return labels, foreground, average.float()

    def classification_loss(self, pred_logits, gt_labels, normalizer) -> torch.Tensor:
        """
        Args:
            pred_logits: for each level (N, ..., C), whose dimensions between are Ri anchors.
            gt_labels: (N, R) int64 in [-1, K].
            normalizer: what the sum is divided by.
        """
        sizes = [x[0, ..., 0].numel() for x in pred_logits]
        labels = [of.view(x.shape[:-1]) for of, x in zip(gt_labels.split(sizes, dim=1), pred_logits, strict=True)]
        counts = [of >= 0 for of in labels]
        logits = cat([x[i] for x, i in zip(pred_logits, counts)])
        labels = cat([of[i] for of, i in zip(labels, counts)])
        return self.cls_loss(logits, labels, reduction="sum") / normalizer

    def scores(self, logits) -> torch.Tensor:
        """(r, C) logits -> (r, K) scores in [0, 1]."""
        calibrated = self.calibration
        probs = self.cls_loss.probs(logits) if calibrated is None else calibrated(self.cls_loss, logits)
        return probs[:, : self.num_classes]

    def detect(self, anchors: list[Boxes], logits: list, deltas: list, image_size, centerness=None) -> Instances:
        """The detections of one image: Detectron2's, without its ties, fast with many categories.

        Args:
            anchors: Ri for each level.
            logits: (Ri, C) for each level.
            deltas: (Ri, 4) for each level.
            image_size: (height, width) in pixels.
            centerness: (Ri, 1) logits for each level, or None: the score is the geometric mean of both.
        """

        def scores_of(level: int, place: slice) -> torch.Tensor:
            scores = self.scores(logits[level][place])
            if centerness is None:
                return scores
            return torch.sqrt(scores * centerness[level][place].sigmoid())

        if torch.jit.is_tracing():  # how many candidates there are depends on the image
            scores = [scores_of(level, slice(None)) for level in range(len(logits))]
            return self.inference_single_image(anchors, scores, deltas, image_size)  # type: ignore[attr-defined]
        levels = zip(deltas, anchors)
        return dense_inference_single_image(
            [EncodedBoxes(self.box2box_transform, d, a.tensor) for d, a in levels],  # type: ignore[attr-defined]
            logits,
            scores_of,
            image_size,
            self.test_score_thresh,
            self.test_topk_candidates,  # type: ignore[attr-defined]
            self.test_nms_thresh,  # type: ignore[attr-defined]
            self.max_detections_per_image,
        )


def loss_arguments(cfg, section: str) -> dict:
    """``cls_loss`` and ``calibration`` of a dense detector, whose number of classes is ``MODEL.<section>``'s."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL[section].NUM_CLASSES
    losses = cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS
    losses.NAME = losses.NAME or DEFAULT_LOSS
    cls_loss = build_cls_loss(cfg)
    return {"cls_loss": cls_loss, "calibration": build_calibration(cfg, cls_loss)}


def fits_dense(cls_loss) -> bool:
    """Whether every score starts low; of a loss, or of its class by its defaults."""
    return cls_loss.prior_prob is not None and cls_loss.prior_prob < 0.5


def require_dense(cls_loss: ClassificationLoss, detector: str) -> None:
    if fits_dense(cls_loss) and not cls_loss.needs_negatives:
        return
    reason = "needs to know what each image was checked for (IMAGE_LABELS), which a dense detector does not tell it"
    if not fits_dense(cls_loss):
        reason = "starts undecided, and nearly all anchors are background: none of its scores starts near 0"
    raise InputError(
        f"{type(cls_loss).__name__} is no loss for {detector}: it {reason}. Choose a sigmoid loss by {NODE}.NAME, such "
        f"as SigmoidFocalLoss, EqualizedFocalLoss or EqualizationLoss"
    )


def fitted_classifier(head, cls_loss: ClassificationLoss) -> nn.Conv2d:
    """The head's classifier with C logits an anchor in the place of K, and the bias that the loss starts from.

    It starts from the head's random weights, and draws further ones in a fork of the random stream.
    """
    stock, K, C = head.cls_score, cls_loss.num_classes, cls_loss.num_logits
    A = head.bbox_pred.out_channels // 4
    if stock.out_channels != A * K:
        raise InputError(
            f"the head's cls_score has {stock.out_channels} outputs for {A} anchors a place, expected {A} x {K}: build "
            f"the head with num_classes={K}"
        )
    classifier = stock
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        if C != K:
            classifier = nn.Conv2d(
                stock.in_channels, A * C, stock.kernel_size, stride=stock.stride, padding=stock.padding
            ).to(stock.weight)
            nn.init.normal_(classifier.weight, std=0.01)
            classifier.weight.unflatten(0, (A, C))[:, :K] = stock.weight.unflatten(0, (A, K))
        classifier.bias.copy_(dense_bias(cls_loss).repeat(A))
    return classifier


def dense_bias(cls_loss: ClassificationLoss) -> torch.Tensor:
    """(C,) what the logits of an anchor or query start from: the loss's prior, and 1 - p for background.

    Nearly every anchor is background.
    """
    bias = torch.full((cls_loss.num_logits,), cls_loss.initial_bias)
    bias[cls_loss.num_classes :] *= -1
    return bias
