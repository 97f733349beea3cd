"""Where the rows of a batch come from: a concept's pictures, pairs with signals, pictures that the base made.

A source names candidates first (`pick`), which costs nothing, and gives a row's tensors when it is asked for one
(`fetch`). Pictures are decoded and encoded the first time that they are drawn, and their latents kept, so that a
source may be larger than the memory that its pixels would take.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..bases import Base
from ..data.cache import TensorCache, content_key
from ..data.concept import Concept
from ..data.control_pairs import ControlPairs
from ..data.latent_bank import LatentBank
from ..data.memory_bank import MemoryBank
from . import seeds


@dataclass(frozen=True)
class Fetched:
    """One row: latents (C, h, w), mask (1, h, w) or None, control signal (3, H, W) or None; all on the CPU."""

    latents: Tensor
    mask: Tensor | None = None
    signal: Tensor | None = None


class Source(ABC):
    """Rows by index, each with a caption."""

    @abstractmethod
    def pick(self, rng: np.random.Generator, size: int, place: int) -> list[tuple[int, str]]:
        """Candidates for the rows of a batch: (index, caption) each.

        Args:
            rng: of the batch.
            size: how many.
            place: how many rows were drawn in all batches before.
        """

    @abstractmethod
    def fetch(self, index: int) -> Fetched:
        """The tensors of one row."""

    def captions(self) -> list[str]:
        """Every caption that `pick` may give; empty when there are too many to encode them all beforehand."""
        return []


class ConceptPictures(Source):
    """A concept's pictures in shuffled rounds.

    Args:
        base: encodes them.
        concept: pictures and captions.
        resolution: side of the training pictures, in pixels.
        masked: give the concept's masks.
        caption_dropout: share of captions replaced by the empty prompt.
        templates: what pictures without a caption are learned with, one drawn at random; "{}" is the concept.
        seed, process: what the order depends on.
        cache: keeps latents.
    """

    def __init__(
        self,
        base: Base,
        concept: Concept,
        *,
        resolution: int,
        masked: bool = False,
        caption_dropout: float = 0.0,
        templates: Sequence[str] = (),
        seed: int,
        process: int,
        cache: TensorCache,
    ) -> None:
        self.seed, self.process, self.caption_dropout = seed, process, caption_dropout
        self._captions = concept.captions()
        self._plain = [example.caption is None for example in concept.examples]
        self._templates = [template.replace("{}", concept.phrase) for template in templates]
        rows = zip(concept.pixels(resolution), concept.contents, strict=True)
        self._latents = [encoded(base, pixels, content, cache) for pixels, content in rows]
        masks = concept.masks(resolution) if masked else None
        small = self._latents[0].shape[-2:]
        self._masks = None if masks is None else F.interpolate(masks, small, mode="area")

    def captions(self) -> list[str]:
        return [*self._captions, *self._templates, ""]

    def pick(self, rng: np.random.Generator, size: int, place: int) -> list[tuple[int, str]]:
        chosen = shuffled(len(self._captions), size, first=place, seed=self.seed, process=self.process)
        return [(i, "" if rng.random() < self.caption_dropout else self._caption(i, rng)) for i in chosen]

    def _caption(self, index: int, rng: np.random.Generator) -> str:
        if self._templates and self._plain[index]:
            return self._templates[int(rng.integers(len(self._templates)))]
        return self._captions[index]

    def fetch(self, index: int) -> Fetched:
        return Fetched(self._latents[index], None if self._masks is None else self._masks[index])


class PairPictures(Source):
    """Pictures with their control signals, in shuffled rounds.

    Args:
        base: encodes the pictures.
        pairs: pictures, signals, captions.
        resolution: side of the training pictures, in pixels.
        caption_dropout: share of captions replaced by the empty prompt; the signal stays.
        seed, process: what the order depends on.
        cache: keeps latents.
    """

    def __init__(
        self,
        base: Base,
        pairs: ControlPairs,
        *,
        resolution: int,
        caption_dropout: float = 0.0,
        seed: int,
        process: int,
        cache: TensorCache,
    ) -> None:
        self.base, self.pairs, self.resolution, self.cache = base, pairs, resolution, cache
        self.caption_dropout, self.seed, self.process = caption_dropout, seed, process

    def pick(self, rng: np.random.Generator, size: int, place: int) -> list[tuple[int, str]]:
        chosen = shuffled(len(self.pairs), size, first=place, seed=self.seed, process=self.process)
        pairs = self.pairs.pairs
        return [(i, "" if rng.random() < self.caption_dropout else pairs[i].caption) for i in chosen]

    def fetch(self, index: int) -> Fetched:
        pixels, signal = self.pairs.read([index], self.resolution)
        content = self.pairs.pairs[index].content()
        return Fetched(encoded(self.base, pixels[0], content, self.cache), signal=signal[0])


class BankPictures(Source):
    """Pictures that the untouched base made, any of them at any time.

    Args:
        base: encodes them.
        bank: pictures with their prompts.
        cache: keeps latents.
    """

    def __init__(self, base: Base, bank: MemoryBank, *, cache: TensorCache) -> None:
        self.base, self.bank, self.cache = base, bank, cache
        self._prompts, self._contents = bank.prompts, bank.contents

    def captions(self) -> list[str]:
        return list(dict.fromkeys(self._prompts))

    def pick(self, rng: np.random.Generator, size: int, place: int) -> list[tuple[int, str]]:
        return [(int(i), self._prompts[i]) for i in rng.integers(len(self._prompts), size=size)]

    def fetch(self, index: int) -> Fetched:
        return Fetched(encoded(self.base, self.bank.picture(index), self._contents[index], self.cache))


class BankLatents(Source):
    """Latents that the untouched base made, any of them at any time, read from disk as they are drawn.

    Args:
        bank: the latents with the prompts that made them.
        caption: what all of them are conditioned on, "" for nothing; None takes each one's own prompt.
        signal: row number -> its control signal (3, H, W), where rows have one.
    """

    def __init__(self, bank: LatentBank, caption: str | None, *, signal: Callable[[int], Tensor] | None = None) -> None:
        self.bank, self.caption, self.signal = bank, caption, signal

    def captions(self) -> list[str]:
        if self.caption is not None:
            return [self.caption]
        return list(dict.fromkeys(self.bank.caption(i) for i in range(len(self.bank))))

    def pick(self, rng: np.random.Generator, size: int, place: int) -> list[tuple[int, str]]:
        rows = [int(i) for i in rng.integers(len(self.bank), size=size)]
        return [(i, self.bank.caption(i) if self.caption is None else self.caption) for i in rows]

    def fetch(self, index: int) -> Fetched:
        return Fetched(self.bank.latents([index])[0], signal=self.signal(index) if self.signal else None)


class Unconditioned(Source):
    """The rows of another source, each with the empty prompt."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def captions(self) -> list[str]:
        return [""]

    def pick(self, rng: np.random.Generator, size: int, place: int) -> list[tuple[int, str]]:
        return [(i, "") for i, _ in self.source.pick(rng, size, place)]

    def fetch(self, index: int) -> Fetched:
        return self.source.fetch(index)


def shuffled(count: int, size: int, *, first: int, seed: int, process: int) -> list[int]:
    """`size` indices below `count`, from place `first` on, of an endless row of shuffled rounds."""
    rounds = range(first // count, (first + size - 1) // count + 1)
    row = [int(i) for r in rounds for i in seeds.rng(seed, process, 2**20 + r).permutation(count)]
    start = first - rounds[0] * count
    return row[start : start + size]


@torch.no_grad()
def encoded(base: Base, pixels: Tensor, content: str, cache: TensorCache) -> Tensor:
    """The latents (C, h, w) on the CPU of one picture (3, R, R) in [0, 1], computed once for each content."""
    key = content_key("latents", base.autoencoder_fingerprint, content, pixels.shape[-1])
    return cache.get(key, lambda: base.encode_pictures(pixels[None].to(base.device))[0])
