import math

import pytest
import torch

from eql_d2.losses import functional


def test_bernoulli_has_the_chance_of_each_column():
    """Over 40,000 rows every mean is within 5 standard deviations; 0 and 1 are certain."""
    R, chance = 40_000, torch.tensor([0.0, 1e-3, 0.1, 0.5, 0.9, 0.999, 1.0])
    drawn = functional.bernoulli(chance, R).double()
    sigma = (chance.double() * (1 - chance.double()) / R).sqrt()
    assert ((drawn.mean(dim=0) - chance).abs() <= 5 * sigma + 2**-15).all()
    assert (drawn[:, 0] == 0).all() and (drawn[:, -1] == 1).all()


def test_bernoulli_draws_each_entry_by_itself():
    """Four entries share the bits of a number: neither neighbours nor rows may know of each other."""
    R, C = 20_000, 9
    drawn = functional.bernoulli(torch.full((C,), 0.5), R).double()
    correlation = torch.corrcoef(drawn.T) - torch.eye(C, dtype=torch.float64)
    assert correlation.abs().max() < 5 / math.sqrt(R)
    following = torch.corrcoef(torch.stack([drawn[:-1].flatten(), drawn[1:].flatten()]))[0, 1]
    assert following.abs() < 5 / math.sqrt(R * C)


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_bernoulli_spares_rows(chance):
    rows = torch.arange(10) % 2 == 0
    drawn = functional.bernoulli(torch.full((50,), chance), 10, rows)
    assert not drawn[~rows].any() and drawn[rows].all() == (chance == 1) and drawn.any() == (chance > 0)
