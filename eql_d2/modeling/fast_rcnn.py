"""The box predictor that takes any classification loss of the registry.

Shape shorthand:

    R: number of RoIs of all images together; Ri: number of RoIs of image i
    N: number of images
    K: number of foreground categories; background is index K
    D: width of the classifier's input
    predictions: what :meth:`LongTailFastRCNNOutputLayers.forward` returns, (logits, deltas, features)
"""

import torch
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.utils.events import get_event_storage
from torch import nn

from eql_d2.data.json_files import read_json
from eql_d2.errors import InputError
from eql_d2.losses import ClassificationLoss, build_cls_loss
from eql_d2.losses.fused import own_entry
from eql_d2.modeling.calibration import Calibration, build_calibration
from eql_d2.modeling.inference import EncodedBoxes, fast_rcnn_inference
from eql_d2.modeling.meta_reweighter import MetaReweighter, Samples
from eql_d2.modeling.normed_linear import EmbeddingClassifier, build_classifier, read_embeddings


class LongTailFastRCNNOutputLayers(FastRCNNOutputLayers):
    """Detectron2's box predictor with its classification loss taken out and made an argument.

    The loss decides the width of ``cls_score``, its initial bias, the training loss and the scores at inference;
    box regression is Detectron2's, for all K categories.
    """

    cls_score: nn.Linear
    thresholds: torch.Tensor | None
    cls_score_name = "cls_score"  # of the classifier, within this module

    @configurable
    def __init__(
        self,
        input_shape,
        *,
        cls_loss: ClassificationLoss,
        calibration: Calibration | None = None,
        image_labels: bool = False,
        learn_scale: bool = False,
        cls_temperature: float = 0.0,
        cls_bias: bool = True,
        embeddings: torch.Tensor | None = None,
        thresholds: torch.Tensor | None = None,
        **kwargs,
    ):
        """
        Args:
            input_shape (ShapeSpec or int): shape of the RoI features, or D.
            cls_loss: the classification loss, for as many classes as ``num_classes``.
            calibration: a correction of the loss's scores at inference, or None.
            image_labels: whether to tell the loss which categories each image was checked for; see
                :mod:`eql_d2.modeling.image_labels`.
            learn_scale: whether each logit has a learnable factor ``cls_scale``, initially 1: learnable weight scaling
                (LWS), "Decoupling Representation and Classifier for Long-Tailed Recognition" (Kang et al., ICLR 2020,
                arXiv:1910.09217), where nothing but the factors is trained.
            cls_temperature: of the normalised classifier, :class:`eql_d2.modeling.normed_linear.NormedLinear`; 0 is a
                plain linear one.
            cls_bias: whether the normalised classifier has a bias; a loss with a prior starts from it.
            embeddings: (K, D) fixed ones of the categories, for the normalised classifier; None: it learns its weights.
            thresholds: (K,) in [0, 1], scores that a category must reach to be detected; None: no such.
            kwargs: the arguments of ``FastRCNNOutputLayers``.
        """
        super().__init__(input_shape, **kwargs)
        if cls_loss.num_classes != self.num_classes:
            raise InputError(
                f"the loss {type(cls_loss).__name__} has {cls_loss.num_classes} classes, the box predictor "
                f"{self.num_classes}"
            )
        if image_labels and not cls_loss.uses_negatives:
            raise InputError(
                f"MODEL.ROI_BOX_HEAD.CLS_LOSS.IMAGE_LABELS is True, but {type(cls_loss).__name__} has no term of its "
                f"own for each category that it could leave out: choose a sigmoid loss, or set it to False"
            )
        if cls_loss.needs_negatives and not image_labels:
            raise InputError(
                f"{type(cls_loss).__name__} is set to go by what each image was checked for: set "
                f"MODEL.ROI_BOX_HEAD.CLS_LOSS.IMAGE_LABELS True"
            )
        self.cls_loss = cls_loss
        self.calibration = calibration
        if thresholds is not None and thresholds.shape != (self.num_classes,):
            raise InputError(
                f"there are thresholds of {len(thresholds)} categories (MODEL.ROI_BOX_HEAD.THRESHOLDS_FILE), but the "
                f"box predictor has {self.num_classes}"
            )
        self.register_buffer("thresholds", thresholds, persistent=False)
        self.image_labels = image_labels
        self.checked: torch.Tensor | None = None  # (N, K) bool of the batch, which a hook sets
        stock = self.cls_score
        with torch.random.fork_rng(devices=[]):
            self.cls_score = build_classifier(
                stock.in_features, cls_loss.num_logits, cls_temperature, cls_bias, embeddings
            )
            if embeddings is None:
                nn.init.normal_(self.cls_score.weight, std=0.01)
        self._start_from(stock)
        if cls_bias:
            nn.init.constant_(self.cls_score.bias, cls_loss.initial_bias)
        elif cls_loss.prior_prob is not None:
            raise InputError(
                f"{type(cls_loss).__name__} starts from a bias, but MODEL.ROI_BOX_HEAD.CLS_NORM.BIAS is False: set it "
                f"to True, or choose a softmax loss"
            )
        if learn_scale and isinstance(cls_loss, MetaReweighter):
            raise InputError("META_REWEIGHT steps the classifier layer alone: set MODEL.ROI_BOX_HEAD.CLS_SCALE False")
        self.cls_scale = nn.Parameter(torch.ones(cls_loss.num_logits)) if learn_scale else None

    @classmethod
    def from_config(cls, cfg, input_shape):
        for key in ("USE_SIGMOID_CE", "USE_FED_LOSS"):
            if cfg.MODEL.ROI_BOX_HEAD[key]:
                raise InputError(
                    f"MODEL.ROI_BOX_HEAD.{key} is a switch of Detectron2's own predictor; with a head of eql_d2 choose "
                    f"the loss by MODEL.ROI_BOX_HEAD.CLS_LOSS.NAME"
                )
        cls_loss = build_cls_loss(cfg)
        calibration = build_calibration(cfg, cls_loss)
        meta = cfg.MODEL.ROI_BOX_HEAD.META_REWEIGHT
        if meta.ENABLED:
            cls_loss = MetaReweighter(cls_loss, lr=meta.LR, inner_lr=meta.INNER_LR)
        return {
            **super().from_config(cfg, input_shape),
            "cls_loss": cls_loss,
            "calibration": calibration,
            "image_labels": cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS.IMAGE_LABELS,
            "learn_scale": cfg.MODEL.ROI_BOX_HEAD.CLS_SCALE,
            "cls_temperature": cfg.MODEL.ROI_BOX_HEAD.CLS_NORM.TEMPERATURE,
            "cls_bias": cfg.MODEL.ROI_BOX_HEAD.CLS_NORM.BIAS,
            "embeddings": read_embeddings(cfg.MODEL.ROI_BOX_HEAD.CLS_NORM.EMBEDDINGS, cls_loss.num_classes),
            "thresholds": read_thresholds(cfg.MODEL.ROI_BOX_HEAD.THRESHOLDS_FILE),
        }

    @classmethod
    def like(cls, stock: FastRCNNOutputLayers, cfg) -> "LongTailFastRCNNOutputLayers":
        """Our predictor in place of ``stock``, which Detectron2's ROI head has built.

        It starts from the stock predictor's random weights, and draws those of further rows in a fork of the random
        stream. So the rest of the model is bit-equal to the stock model of the same seed: a fair baseline.
        """
        with torch.random.fork_rng(devices=[]):
            predictor = cls(cfg, stock.cls_score.in_features, box2box_transform=stock.box2box_transform)
        predictor.bbox_pred.load_state_dict(stock.bbox_pred.state_dict())
        predictor._start_from(stock.cls_score)
        return predictor

    @torch.no_grad()
    def _start_from(self, stock: nn.Linear) -> None:
        """Take the random rows of Detectron2's classifier; further rows have their own. Embeddings stay."""
        if isinstance(self.cls_score, EmbeddingClassifier):
            return
        rows = min(self.cls_score.out_features, stock.out_features)
        self.cls_score.weight[:rows] = stock.weight[:rows]

    def forward(self, x):
        """
        Args:
            x: (R, ...) RoI features.

        Returns:
            logits (R, num_logits), box deltas (R, 4) or (R, 4K), and the flattened features (R, D), which
            some losses weigh by.
        """
        features = torch.flatten(x, start_dim=1)
        logits, deltas = super().forward(features)
        if self.cls_scale is not None:
            logits = logits * self.cls_scale
        return logits, deltas, features

    def losses(self, predictions, proposals):
        """
        Args:
            predictions: (logits, deltas, features) of the sampled proposals.
            proposals (list[Instances]): with ``proposal_boxes``, ``gt_classes`` and, where the image has objects,
                ``gt_boxes``.

        Returns:
            dict with ``loss_cls`` and ``loss_box_reg``.
        """
        logits, deltas, features = predictions
        if len(proposals):
            gt_classes = cat([p.gt_classes for p in proposals])
            proposal_boxes = cat([p.proposal_boxes.tensor for p in proposals])
            # Without objects in an image all its proposals are background, so that any box will do.
            gt_boxes = cat([(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals])
        else:
            gt_classes = logits.new_zeros(0, dtype=torch.int64)
            proposal_boxes = gt_boxes = deltas.new_zeros(0, 4)
        log_classification_stats(self.cls_loss, logits, gt_classes)
        known = self._known_categories(proposals, gt_classes)
        if isinstance(self.cls_loss, MetaReweighter):
            self.cls_loss.learn(self.cls_score, Samples(features, gt_classes, known), [len(p) for p in proposals])
        losses = {
            "loss_cls": self.cls_loss(logits, gt_classes, features, known),
            "loss_box_reg": self.box_reg_loss(proposal_boxes, gt_boxes, deltas, gt_classes),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def _known_categories(self, proposals, gt_classes):
        """The ``negatives`` of the loss's call, (R, K) bool, or None without image labels.

        Those that the image was checked for, and the RoI's own category, even if the image has further objects of it
        that are not marked.
        """
        if not self.image_labels:
            return None
        if not len(proposals):
            return gt_classes.new_zeros(0, self.num_classes, dtype=torch.bool)
        if self.checked is None:
            raise InputError(
                "the box predictor was not told which categories the images were checked for: train with "
                "eql_d2.engine.Trainer, or call eql_d2.modeling.image_labels.tell_image_labels(model) first"
            )
        # No repeat_interleave: on a GPU it waits for the numbers of RoIs.
        known = cat([row.expand(len(p), -1) for row, p in zip(self.checked, proposals)])
        column, foreground = own_entry(gt_classes, self.num_classes)
        return known.scatter(1, column, known.gather(1, column) | foreground)

    def inference(self, predictions, proposals):
        """Detections as in ``FastRCNNOutputLayers``, bit for bit, but fast with many categories.

        Returns:
            list of Instances and list of the indices of their RoIs, one an image; see
            :func:`eql_d2.modeling.inference.fast_rcnn_inference`.
        """
        if torch.jit.is_tracing():  # how many candidates suffice depends on the image
            return super().inference(predictions, proposals)
        return fast_rcnn_inference(
            self._boxes_to_decode(predictions, proposals),
            self.predict_probs(predictions, proposals),
            [p.image_size for p in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )

    def _boxes_to_decode(self, predictions, proposals):
        """:meth:`predict_boxes` with class-specific boxes left encoded, since few of the Ri x K are looked at."""
        deltas = predictions[1]
        if deltas.shape[1] == 4 or not isinstance(self.box2box_transform, Box2BoxTransform):
            return self.predict_boxes(predictions, proposals)
        return [
            EncodedBoxes(self.box2box_transform, d, p.proposal_boxes.tensor)
            for d, p in zip(deltas.split([len(p) for p in proposals]), proposals)
        ]

    def predict_boxes(self, predictions, proposals):
        """List of (Ri, 4) or (Ri, 4K) boxes, one an image; see ``FastRCNNOutputLayers``."""
        return super().predict_boxes(predictions[:2], proposals)

    def predict_boxes_for_gt_classes(self, predictions, proposals):
        """List of (Ri, 4) boxes of the labelled classes, one an image; see ``FastRCNNOutputLayers``."""
        return super().predict_boxes_for_gt_classes(predictions[:2], proposals)

    def predict_probs(self, predictions, proposals):
        """List of (Ri, K + 1) scores, one an image: the loss's, corrected by the calibration; background last.

        Those below the threshold of their category are 0.
        """
        logits = predictions[0]
        if self.calibration is None:
            scores = self.cls_loss.probs(logits)
        else:
            scores = self.calibration(self.cls_loss, logits)
        if self.thresholds is not None:
            scores = torch.cat([scores[:, :-1] * (scores[:, :-1] >= self.thresholds), scores[:, -1:]], dim=1)
        return scores.split([len(p) for p in proposals])


def read_thresholds(path: str) -> torch.Tensor | None:
    """(K,) float32 of a file of `eql-d2 thresholds`; None without a file."""
    return torch.tensor(read_json(path, required=("thresholds",))["thresholds"]) if path else None


@torch.no_grad()
def log_classification_stats(cls_loss, logits, gt_classes) -> None:
    """Log to EventStorage how many RoIs are classified right.

    Detectron2's version takes the last column for background, which sigmoid losses do not have. Here
    ``fg_cls_accuracy`` is over the K categories alone; ``cls_accuracy`` and ``false_negative`` go by what the loss
    takes for background (a sigmoid loss: no score above 0.5).
    """
    R, K = len(gt_classes), cls_loss.num_classes
    if R == 0:
        return
    probs = cls_loss.probs(logits)
    predicted = cls_loss.predicted_classes(probs)
    foreground = gt_classes < K
    right_among_foreground = probs[:, :K].argmax(dim=1) == gt_classes
    # One transfer to the host instead of one a number.
    num_foreground, num_right, num_right_fg, num_missed = torch.stack(
        [
            foreground.sum(),
            (predicted == gt_classes).sum(),
            (foreground & right_among_foreground).sum(),
            (foreground & (predicted == K)).sum(),
        ]
    ).tolist()
    storage = get_event_storage()
    storage.put_scalar("fast_rcnn/cls_accuracy", num_right / R)
    if num_foreground > 0:
        storage.put_scalar("fast_rcnn/fg_cls_accuracy", num_right_fg / num_foreground)
        storage.put_scalar("fast_rcnn/false_negative", num_missed / num_foreground)
