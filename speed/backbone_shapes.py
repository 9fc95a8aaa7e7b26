"""What a backbone of a LazyConfig needs for an image of 1024 x 1024, from shapes alone: nothing is computed.

python -m speed.backbone_shapes configs/lazy/LVISv1/*mask_rcnn*.py
"""

import sys

import torch
from detectron2.config import LazyConfig, instantiate
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._device import DeviceContext
from torch.utils.flop_counter import FlopCounterMode


class Meta(DeviceContext):
    """Tensors have a shape and no values, but for the numbers that ViT asks for."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.linspace:
            return func(*args, **{**(kwargs or {}), "device": "cpu"})
        return super().__torch_function__(func, types, args, kwargs)


def describe(path: str) -> str:
    """Parameters, activations kept for the backward, and multiply-adds of a forward."""
    saved = {}  # the tensors themselves: a storage that is freed could have its number taken by another

    def keep(tensor):
        saved[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with Meta(torch.device("meta")):
        backbone = instantiate(LazyConfig.load(path).model.backbone).train().requires_grad_(True)
        with saved_tensors_hooks(keep, lambda tensor: tensor), FlopCounterMode(display=False) as counter:
            backbone(torch.empty(1, 3, 1024, 1024))
    own = {p.untyped_storage()._cdata for p in backbone.parameters()}
    activations = sum(t.untyped_storage().nbytes() for number, t in saved.items() if number not in own)
    parameters = sum(p.numel() for p in backbone.parameters())
    return (
        f"{path}: {parameters / 1e6:.0f} M parameters, {activations / 2**30:.1f} GiB of activations in fp32, "
        f"{counter.get_total_flops() / 2e9:.0f} G multiply-adds"
    )


if __name__ == "__main__":
    for path in sys.argv[1:]:
        print(describe(path))
