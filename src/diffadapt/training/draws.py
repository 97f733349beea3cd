"""What a batch is drawn from: rows in shuffled rounds, timesteps spread over the range, latents encoded once."""

import numpy as np
import torch
from torch import Tensor

from ..bases import Base
from ..data.cache import TensorCache, content_key
from . import seeds


def shuffled(count: int, size: int, *, first: int, seed: int, process: int) -> list[int]:
    """`size` indices below `count`, from place `first` on, of an endless row of shuffled rounds."""
    rounds = range(first // count, (first + size - 1) // count + 1)
    row = [int(i) for r in rounds for i in seeds.rng(seed, process, 2**20 + r).permutation(count)]
    start = first - rounds[0] * count
    return row[start : start + size]


def spread_timesteps(rng: np.random.Generator, rows: int, length: int) -> Tensor:
    """(rows,) timesteps below `length`, one from each equal share of the range: less variance than plain draws."""
    share = (rng.permutation(rows) + rng.random(rows)) / rows
    return torch.from_numpy(share * length).long().clamp(max=length - 1)


@torch.no_grad()
def encoded(base: Base, pixels: Tensor, content: str, cache: TensorCache) -> Tensor:
    """The latents (C, h, w) on the CPU of one picture (3, R, R) in [-1, 1], computed once for each content."""
    key = content_key("latents", base.fingerprint, content, pixels.shape[-1])
    return cache.get(key, lambda: base.encode_pictures(pixels[None].to(base.device))[0])
