"""Generative replay: pictures of past concepts, drawn by the adapter that knows them, stand in for those not kept.

A baseline of C-LoRA's (Smith et al. 2023, arXiv:2304.06027, table 1): each task trains on its own pictures and on what
the model so far draws of the earlier concepts, so that its mistakes are learned again with them.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..bases import Base
from ..sampling.sample import default_line, generate
from .sources import Fetched, Source


class ReplayedPictures(Source):
    """Latents, kept in memory, that a base draws with everything attached to it now.

    Args:
        base: with the adapter of the tasks so far.
        phrases: how prompts ask for the past concepts.
        count: pictures of each.
        side: of the pictures, in pixels.
        seed: of the first picture of each concept; the same seeds give the same pictures.
    """

    def __init__(self, base: Base, phrases: Sequence[str], *, count: int, side: int, seed: int) -> None:
        lines = [
            replace(default_line(base, f"a {phrase}", seed + i), width=side, height=side)
            for phrase in phrases
            for i in range(count)
        ]
        self._prompts = [f"a {phrase}" for phrase in phrases for _ in range(count)]
        self._latents: list[Tensor] = []
        for pixels in generate(base, lines):
            with torch.no_grad():
                self._latents.append(base.encode_pictures(pixels[None].to(base.device).clamp(0, 1))[0].cpu())

    def captions(self) -> list[str]:
        return list(dict.fromkeys(self._prompts))

    def pick(self, rng: np.random.Generator, size: int, place: int) -> list[tuple[int, str]]:
        return [(int(i), self._prompts[i]) for i in rng.integers(len(self._prompts), size=size)]

    def fetch(self, index: int) -> Fetched:
        return Fetched(self._latents[index])


class Mixed(Source):
    """Rows of several sources, each source as often as the others."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources

    def captions(self) -> list[str]:
        return [caption for source in self.sources for caption in source.captions()]

    def pick(self, rng: np.random.Generator, size: int, place: int) -> list[tuple[int, str]]:
        candidates = [source.pick(rng, size, place) for source in self.sources]
        chosen = [int(i) for i in rng.integers(len(self.sources), size=size)]
        # the source's number is the remainder of the index
        return [
            (index * len(self.sources) + source, caption)
            for source, (index, caption) in ((source, candidates[source][row]) for row, source in enumerate(chosen))
        ]

    def fetch(self, index: int) -> Fetched:
        return self.sources[index % len(self.sources)].fetch(index // len(self.sources))
