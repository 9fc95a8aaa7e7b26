"""Softmax cross-entropy, Detectron2's own loss and the baseline of the softmax losses."""

from eql_d2.losses.base import SoftmaxLoss
from eql_d2.losses.build import CLS_LOSS_REGISTRY


@CLS_LOSS_REGISTRY.register()
class SoftmaxCrossEntropy(SoftmaxLoss):
    """One softmax over the categories and background: L = -(1 / R) sum_i log softmax(z_i)_{y_i}.

    Background is category K like any other. Equal to Detectron2's ``FastRCNNOutputLayers``.

    Args:
        num_classes: K.
    """
