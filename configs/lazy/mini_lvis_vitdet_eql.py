"""mini_lvis_vitdet_sigmoid.py with Equalization Loss."""

from detectron2.config import LazyCall as L

from eql_d2 import ClassFrequencies, TailRule
from eql_d2.losses import EqualizationLoss
from eql_d2.modeling import long_tail

from .mini_lvis_vitdet_sigmoid import dataloader, lr_multiplier, model, optimizer, train

__all__ = ["dataloader", "lr_multiplier", "model", "optimizer", "train"]

long_tail(
    model,
    loss=L(EqualizationLoss)(
        frequencies=L(ClassFrequencies.from_dataset)(name="mini_lvis_train"),
        tail=L(TailRule)(groups="r"),
        prior_prob=0.01,
    ),
)
train.output_dir = "./output/mini_lvis_vitdet_eql"
