"""How the box predictors of a model learn what each image of the batch was checked for.

Detectron2 hands a box predictor proposals, which know nothing of their image. So the model's input is looked at before
each training step, by a hook: it fits every meta-architecture, and DistributedDataParallel around it.
"""

from torch import nn

from eql_d2.data.federated import CHECKED, KEY, checked_mask
from eql_d2.errors import InputError
from eql_d2.modeling.fast_rcnn import LongTailFastRCNNOutputLayers


def tell_image_labels(model: nn.Module) -> nn.Module:
    """Let ``model`` tell its box predictors what the images of each training step were checked for. Returns the model.

    The images come from :func:`eql_d2.data.federated.get_checked_dataset_dicts`. Without a predictor that has
    ``image_labels`` the model is left as it is.
    """
    if predictors_with_image_labels(model):
        model.register_forward_pre_hook(_tell)
    return model


def predictors_with_image_labels(model: nn.Module) -> list:
    return [m for m in model.modules() if isinstance(m, LongTailFastRCNNOutputLayers) and m.image_labels]


def _tell(model: nn.Module, args: tuple) -> None:
    if not model.training:
        return
    (images,) = args
    if not all(CHECKED in image for image in images):
        raise InputError(
            f"{KEY} is True, but the images of the batch have no '{CHECKED}': read them by "
            f"eql_d2.data.federated.get_checked_dataset_dicts, or set it to False"
        )
    predictors = predictors_with_image_labels(model)
    mask = checked_mask(images, predictors[0].num_classes)
    mask = mask.to(predictors[0].cls_score.weight.device, non_blocking=True)
    for predictor in predictors:
        predictor.checked = mask
