"""Random numbers as a function of a key, such as (seed, position), and not of what was drawn before."""

import random
from contextlib import contextmanager

import numpy as np
import torch


def seed_generators(*key: int, devices: bool = False) -> None:
    """Seed the global generators of Python, numpy and torch by a hash of ``key``.

    Args:
        key: integers >= 0.
        devices: whether torch's generators of all devices are meant, or only the CPU's.
    """
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(words.tobytes())
    np.random.seed(words)
    seed = int(words[:2].view(np.uint64)[0] >> np.uint64(1))
    (torch.manual_seed if devices else torch.default_generator.manual_seed)(seed)


@contextmanager
def seeded(*key: int):
    """Within this context the global generators (torch's: the CPU's) start at ``key``; after it they are as before."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_generators(*key)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
