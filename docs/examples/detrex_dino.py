"""DINO of detrex on LVIS v1 with EQL, as a LazyConfig: put it beside detrex's projects/dino/configs.

Not run by this project's tests, since detrex is in no package registry; written against its main branch of 2023.
"""

from detectron2.config import LazyCall as L
from detrex.config import get_config
from projects.dino.configs.models.dino_r50 import model
from projects.dino.modeling import DINOCriterion

from eql_d2 import ClassFrequencies
from eql_d2.losses import EqualizationLoss
from eql_d2.modeling import LongTailCriterionMixin, class_embed

K = 1203


class LongTailDINOCriterion(LongTailCriterionMixin, DINOCriterion):
    """DINO's criterion with ``cls_loss``, for the denoising queries, too."""

    label_loss_name = "loss_class"  # what detrex weighs by criterion.weight_dict

    def __init__(self, cls_loss, **arguments):
        super().__init__(**arguments)
        self.cls_loss = cls_loss


def with_classifiers_of(model, cls_loss):
    """Every decoder layer's classifier, and that of the encoder's proposals, as the loss wants it."""
    for i, stock in enumerate(model.class_embed):
        model.class_embed[i] = class_embed(stock.in_features, cls_loss)
    model.transformer.decoder.class_embed = model.class_embed
    return model


dataloader = get_config("common/data/coco_detr.py").dataloader
dataloader.train.dataset.names = "lvis_v1_train"
dataloader.test.dataset.names = "lvis_v1_val"
optimizer = get_config("common/optim.py").AdamW
lr_multiplier = get_config("common/coco_schedule.py").lr_multiplier_12ep
train = get_config("common/train.py").train

model.num_classes = K
model.criterion.num_classes = K
model.criterion._target_ = LongTailDINOCriterion
model.criterion.cls_loss = L(EqualizationLoss)(
    num_classes=K,
    frequencies=L(ClassFrequencies.from_dataset)(name="lvis_v1_train"),
    prior_prob=0.01,
)
model = L(with_classifiers_of)(model=model, cls_loss=model.criterion.cls_loss)
