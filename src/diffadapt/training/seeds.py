"""Randomness as a function of (seed, purpose, step), so that a resumed run draws what it would have drawn."""

import numpy as np
import torch


def rng(seed: int, *place: int) -> np.random.Generator:
    """A generator that depends on nothing but its arguments, all non-negative."""
    return np.random.default_rng([seed, *place])


def number(seed: int, *place: int) -> int:
    """A seed for torch's own generator that depends on nothing but its arguments."""
    return int(rng(seed, *place, 1).integers(2**62))


def normal(shape: tuple[int, ...], source: np.random.Generator) -> torch.Tensor:
    """Standard normal float32 tensor on the CPU, the same on every device and number of threads."""
    return torch.from_numpy(source.standard_normal(shape, dtype=np.float32))
