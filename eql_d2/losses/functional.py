"""Maths that several losses share. Shapes as in :mod:`eql_d2.losses.base`."""

import torch
from torch.nn import functional as F

from eql_d2.errors import InputError


def mean_one(weight: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Scale class weights so that their mean over the categories that occur is 1.

    A category without a sample is nobody's label, so its weight, often the largest, must not shrink the others'.

    Args:
        weight: (K,) float64.
        counts: (K,) training samples; at least one is not zero.
    """
    occurs = counts > 0
    if not occurs.any():
        raise InputError(f"all {len(counts)} categories have a count of 0: nothing to weigh by")
    return weight * (occurs.sum() / (weight * occurs).sum())


def log_prior(counts: torch.Tensor) -> torch.Tensor:
    """(K,) float64 log n_j - log max n, in (-inf, 0]: the log of the class prior, 0 for the most frequent category.

    A category without a sample counts as one sample.
    """
    log_counts = counts.double().clamp(min=1).log()
    return log_counts - log_counts.max()


def with_background(values: torch.Tensor, background: float) -> torch.Tensor:
    """(K,) values of the categories -> (K + 1,), that of background last."""
    return torch.cat([values, values.new_full((1,), background)])


def softplus(z: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """log(1 + e^z), in ``out`` if given; z itself from 50 on, where float64 knows no difference."""
    return F.softplus(z, threshold=50, out=out)  # type: ignore[call-arg]  # it has `out`, but torch's stub forgets it


def rand(*size: int, device: torch.device, generator: torch.Generator | None = None) -> torch.Tensor:
    """``torch.rand``, which ``torch.compile`` cannot trace with a generator of None and a symbolic size."""
    if generator is None:
        return torch.rand(size, device=device)
    return torch.rand(size, device=device, generator=generator)


def bernoulli(
    chance: torch.Tensor, num_rows: int, rows: torch.Tensor | None = None, generator: torch.Generator | None = None
) -> torch.Tensor:
    """(R, C) bool, each True with its column's chance, rounded to a multiple of 2^-15.

    Random bits are drawn 64 at a time, for four entries: on a CPU in a third of the time of ``torch.rand``, and a
    seventh of that of ``torch.bernoulli``.

    Args:
        chance: (C,) float in [0, 1].
        num_rows: R.
        rows: (R,) bool, False where a row is all False; None: True.
        generator: on the chances' device; None: torch's global one.
    """
    C = len(chance)
    if torch.compiler.is_compiling():  # which has no such bits
        draw = rand(num_rows, C, device=chance.device, generator=generator) < chance
        return draw if rows is None else draw & rows[:, None]
    bits = torch.empty(num_rows, -(-C // 4), dtype=torch.int64, device=chance.device)
    bits.random_(-(2**63), None, generator=generator)
    draw = bits.view(torch.int16)[:, :C] >> 1  # uniform in [-2^14, 2^14)
    if rows is not None:
        beyond_any_chance = torch.where(rows, -(2**14), 2**14).to(torch.int16)
        draw = torch.maximum(draw, beyond_any_chance[:, None])
    return draw < (chance * 2**15).round().sub(2**14).to(torch.int16)
