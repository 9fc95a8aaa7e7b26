"""Classification losses for the box predictor: one file each, registered in CLS_LOSS_REGISTRY."""

import importlib
import pkgutil

from eql_d2.losses.adaptive_class_suppression_loss import AdaptiveClassSuppressionLoss
from eql_d2.losses.asymmetric_loss import AsymmetricLoss
from eql_d2.losses.background_sigmoid import BackgroundSigmoidLoss
from eql_d2.losses.balanced_group_softmax_loss import BalancedGroupSoftmaxLoss
from eql_d2.losses.balanced_softmax_loss import BalancedSoftmaxLoss
from eql_d2.losses.base import ClassificationLoss, RoIs, SigmoidLoss, SoftmaxLoss, keeping_state, losses_of
from eql_d2.losses.build import CLS_LOSS_REGISTRY, build_cls_loss
from eql_d2.losses.class_balanced_loss import ClassBalancedLoss
from eql_d2.losses.class_dependent_temperature_loss import ClassDependentTemperatureLoss
from eql_d2.losses.class_weighted_loss import ClassWeightedLoss
from eql_d2.losses.drop_loss import DropLoss
from eql_d2.losses.effective_class_margin_loss import EffectiveClassMarginLoss
from eql_d2.losses.equalization_loss import EqualizationLoss
from eql_d2.losses.equalization_loss_v2 import EqualizationLossV2
from eql_d2.losses.equalized_focal_loss import EqualizedFocalLoss
from eql_d2.losses.federated_loss import FederatedLoss
from eql_d2.losses.foreground_classification_balance_loss import ForegroundClassificationBalanceLoss
from eql_d2.losses.gumbel_loss import GumbelLoss
from eql_d2.losses.influence_balanced_loss import InfluenceBalancedLoss
from eql_d2.losses.iterations import CountsSteps, LateStart
from eql_d2.losses.label_smoothing_loss import LabelSmoothingLoss
from eql_d2.losses.ldam_loss import LDAMLoss
from eql_d2.losses.logit_adjusted_loss import LogitAdjustedLoss
from eql_d2.losses.normalised import normalised_loss
from eql_d2.losses.seesaw_loss import SeesawLoss
from eql_d2.losses.sigmoid_cross_entropy import SigmoidCrossEntropy
from eql_d2.losses.sigmoid_focal_loss import SigmoidFocalLoss
from eql_d2.losses.softmax_cross_entropy import SoftmaxCrossEntropy
from eql_d2.losses.softmax_equalization_loss import SoftmaxEqualizationLoss
from eql_d2.losses.softmax_federated_loss import SoftmaxFederatedLoss
from eql_d2.losses.softmax_focal_loss import SoftmaxFocalLoss
from eql_d2.losses.vector_scaling_loss import VectorScalingLoss
from eql_d2.losses.weighted_cross_entropy import WeightedCrossEntropy

__all__ = [
    "CLS_LOSS_REGISTRY",
    "AdaptiveClassSuppressionLoss",
    "AsymmetricLoss",
    "BackgroundSigmoidLoss",
    "BalancedGroupSoftmaxLoss",
    "BalancedSoftmaxLoss",
    "ClassBalancedLoss",
    "ClassDependentTemperatureLoss",
    "ClassWeightedLoss",
    "ClassificationLoss",
    "CountsSteps",
    "DropLoss",
    "EffectiveClassMarginLoss",
    "EqualizationLoss",
    "EqualizationLossV2",
    "EqualizedFocalLoss",
    "FederatedLoss",
    "ForegroundClassificationBalanceLoss",
    "GumbelLoss",
    "InfluenceBalancedLoss",
    "LDAMLoss",
    "LabelSmoothingLoss",
    "LateStart",
    "LogitAdjustedLoss",
    "RoIs",
    "SeesawLoss",
    "SigmoidCrossEntropy",
    "SigmoidFocalLoss",
    "SigmoidLoss",
    "SoftmaxCrossEntropy",
    "SoftmaxEqualizationLoss",
    "SoftmaxFederatedLoss",
    "SoftmaxFocalLoss",
    "SoftmaxLoss",
    "VectorScalingLoss",
    "WeightedCrossEntropy",
    "build_cls_loss",
    "keeping_state",
    "losses_of",
    "normalised_loss",
]

for _module in pkgutil.iter_modules(__path__):  # a new loss is one new file: it is registered, and found here by name
    importlib.import_module(f"{__name__}.{_module.name}")
globals().update(CLS_LOSS_REGISTRY)
