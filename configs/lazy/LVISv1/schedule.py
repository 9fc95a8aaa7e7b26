"""The learning rate falls to a tenth after 8/9 of the training, to a hundredth after 26/27, as in ViTDet's recipes."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from .data import iterations_per_epoch

AdamW = model_zoo.get_config("common/optim.py").AdamW


def epochs(train, number):
    """Set the length of the training; returns the schedule of its learning rate."""
    train.max_iter = round(number * iterations_per_epoch)
    train.eval_period = 30000
    return L(WarmupParamScheduler)(
        scheduler=L(MultiStepParamScheduler)(
            values=[1.0, 0.1, 0.01],
            milestones=[round(train.max_iter * 8 / 9), round(train.max_iter * 26 / 27)],
            num_updates=train.max_iter,
        ),
        warmup_length=250 / train.max_iter,
        warmup_factor=0.001,
    )


train = model_zoo.get_config("common/train.py").train
train.amp.update(enabled=True, precision="fp16")  # with a loss scale, without which fp16_compression would underflow
train.ddp.fp16_compression = True
