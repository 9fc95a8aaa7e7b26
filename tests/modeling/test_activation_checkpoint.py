"""Activation checkpointing changes memory and time, and no bit of the gradients."""

import copy

import pytest
import torch
from detectron2.modeling import ViT
from torch.utils.flop_counter import FlopCounterMode

from eql_d2.errors import InputError
from eql_d2.modeling.activation_checkpoint import checkpoint_activations


def vit():
    return ViT(img_size=32, patch_size=8, embed_dim=16, depth=3, num_heads=2, drop_path_rate=0.5, window_size=2)


def gradients(model):
    torch.manual_seed(1)
    x = torch.rand(2, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        model(x)["last_feat"].square().sum().backward()
    return [p.grad for p in model.parameters() if p.grad is not None], counter.get_total_flops()


def test_gradients_are_bit_equal_and_blocks_are_computed_again():
    plain = vit()
    again = checkpoint_activations(checkpoint_activations(copy.deepcopy(plain)))
    assert again.state_dict().keys() == plain.state_dict().keys()
    (expected, few), (found, many) = gradients(plain), gradients(again)
    assert expected and len(expected) == len(found)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert 1.25 * few < many < 1.4 * few  # a forward, of which the backward is two


def test_a_copy_has_its_own_blocks():
    model = checkpoint_activations(vit())
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert other.eval()(torch.rand(1, 3, 32, 32))["last_feat"].abs().sum() == 0


def test_a_model_without_such_a_backbone():
    with pytest.raises(InputError, match="ViT and MViT backbones, and this model has none"):
        checkpoint_activations(torch.nn.Linear(1, 1))
