"""Activation checkpointing of transformer backbones by torch, without fairscale."""

from functools import partial

from detectron2.modeling import MViT, SwinTransformer, ViT
from torch import nn
from torch.utils.checkpoint import checkpoint

from eql_d2.errors import InputError


def checkpoint_activations(model: nn.Module) -> nn.Module:
    """Let each block of the model's ViT or MViT backbones keep its input alone, and be computed again in the backward.

    The memory of a block's activations is traded for one more forward of the backbone; losses and gradients stay
    bit-equal, stochastic depth included. Names of parameters do not change, so checkpoints fit with and without. Twice
    is as once.

    Args:
        model: a model, or a backbone. Detectron2's ``use_act_checkpoint=True`` in a LazyConfig comes to this, too.

    Returns:
        ``model``.

    Raises:
        InputError: no backbone that has blocks; a Swin has a switch of its own, ``use_checkpoint=True``.
    """
    backbones = [m for m in model.modules() if isinstance(m, ViT | MViT)]
    if not backbones:
        swin = any(isinstance(m, SwinTransformer) for m in model.modules())
        hint = "; a SwinTransformer has use_checkpoint=True" if swin else ""
        raise InputError(f"activation checkpointing is of ViT and MViT backbones, and this model has none{hint}")
    for backbone in backbones:
        for block in backbone.blocks:
            if not isinstance(block.forward, partial):
                block.forward = partial(_forward_again, block, block.forward)
    return model


def _forward_again(block: nn.Module, forward, *args):
    """``forward``, without its activations where there will be a backward."""
    return checkpoint(forward, *args, use_reentrant=False) if block.training else forward(*args)
