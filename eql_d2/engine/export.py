"""A detector as a TorchScript file, which runs without this package, without Detectron2 and from C++.

Made by tracing through Detectron2's TracingAdapter. ``torch.export`` (2.14) cannot: Detectron2's proposal generator
branches on tensor values (``if not valid_mask.all()`` in find_top_rpn_proposals), which an exported graph may not.
"""

import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import nn


def trace_detector(model: nn.Module, image: torch.Tensor) -> torch.jit.ScriptModule:
    """Trace a GeneralizedRCNN or a dense detector (RetinaNet, FCOS) in evaluation mode.

    Args:
        image: (3, H, W) of the model's range and channel order, resized as for testing, with at least one detection;
            other images may have other sizes.

    Returns:
        A module from an image to the tuple of its detections' fields in alphabetical order: pred_boxes (N, 4) in pixels
        of the resized image, pred_classes (N,), with a mask head pred_masks (N, 1, 28, 28), and scores (N,).
    """
    adapter = TracingAdapter(model, image, inference_func=detect)
    return torch.jit.trace(adapter, (image,), check_trace=False)


@torch.no_grad()
def detect(model: GeneralizedRCNN | DenseDetector, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What the traced module of ``model`` gives for ``image``; the boxes of a dense detector may leave it."""
    if isinstance(model, DenseDetector):
        images = model.preprocess_image([{"image": image}])
        features = model.backbone(images.tensor)
        features = [features[name] for name in model.head_in_features]
        (detections,) = model.forward_inference(images, features, model.head(features))
    else:
        (detections,) = model.inference([{"image": image}], do_postprocess=False)
    fields = detections.get_fields()
    return tuple(getattr(fields[name], "tensor", fields[name]) for name in sorted(fields))
