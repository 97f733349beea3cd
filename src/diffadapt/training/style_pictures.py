"""Rows of captioned pictures: of folders, in shuffled rounds, and of shards, as they are streamed."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from ..bases import Base
from ..data.cache import TensorCache, content_key
from ..data.captioned import Captioned
from ..data.shards import Member, Shards
from ..errors import Failed, Refused
from .sources import Fetched, Source, shuffled


class CaptionedPictures(Source):
    """The pictures of captioned folders, in shuffled rounds over all of them.

    Pictures are decoded when they are drawn for the first time and only their latents are kept (on disk where the cache
    has a folder), so that folders may be larger than the memory.

    Args:
        base: encodes them.
        pictures: style -> pictures.
        resolution: side of the training pictures, in pixels.
        caption_dropout: share of captions replaced by the empty prompt.
        seed, process: what the order depends on.
        cache: keeps latents.
    """

    def __init__(
        self,
        base: Base,
        pictures: Mapping[str, Captioned],
        *,
        resolution: int,
        caption_dropout: float = 0.0,
        seed: int,
        process: int,
        cache: TensorCache,
    ) -> None:
        self.base, self.resolution, self.cache = base, resolution, cache
        self.caption_dropout, self.seed, self.process = caption_dropout, seed, process
        self._rows = [(each, i) for each in pictures.values() for i in range(len(each))]
        self._contents: dict[int, str] = {}

    def captions(self) -> list[str]:
        return [*(each.caption(i) for each, i in self._rows), ""]

    def pick(self, rng: np.random.Generator, size: int, place: int) -> list[tuple[int, str]]:
        chosen = shuffled(len(self._rows), size, first=place, seed=self.seed, process=self.process)
        return [(i, "" if rng.random() < self.caption_dropout else self._caption(i)) for i in chosen]

    def _caption(self, row: int) -> str:
        captioned, i = self._rows[row]
        return captioned.caption(i)

    def fetch(self, index: int) -> Fetched:
        captioned, i = self._rows[index]
        try:
            if index not in self._contents:
                self._contents[index] = captioned.examples[i].content()
            encoder = self.base.autoencoder_fingerprint
            key = content_key("latents", encoder, self._contents[index], self.resolution)
            latents = self.cache.get(key, lambda: _encode(self.base, captioned.pixels([i], self.resolution)))
        except Refused as error:
            path = captioned.examples[i].path
            if path.is_file():
                raise
            raise Failed(
                f"{path} was there when the training began and is gone; put it back and repeat the call, which goes on "
                "from the last checkpoint"
            ) from error
        return Fetched(latents)


class StreamedPictures(Source):
    """Pictures of shards, in the order in which they are streamed; nothing is kept.

    A resumed training reads the stream again up to its place, without decoding what was trained on before.

    Args:
        base: encodes them.
        shards: what `load_shards` returned.
        resolution: side of the training pictures, in pixels.
        caption_dropout: share of captions replaced by the empty prompt.
        seed: what the order depends on.
        process, processes: which part of the shards is read.
    """

    def __init__(
        self,
        base: Base,
        shards: Shards,
        *,
        resolution: int,
        caption_dropout: float = 0.0,
        seed: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.base, self.shards, self.resolution = base, shards, resolution
        self.caption_dropout, self.seed, self.part = caption_dropout, seed, (process, processes)
        self._stream: Iterator[Member] = iter(())
        self._next, self._recent = -1, {}  # the stream's place, and the rows read last

    def pick(self, rng: np.random.Generator, size: int, place: int) -> list[tuple[int, str]]:
        rows = [self._row(index) for index in range(place, place + size)]
        self._recent = {index: row for index, row in self._recent.items() if index >= place}
        return [(place + i, "" if rng.random() < self.caption_dropout else row.caption) for i, row in enumerate(rows)]

    def first_captions(self, count: int) -> list[str]:
        """The captions of the first pictures of the stream."""
        return [self._row(index).caption for index in range(count)]

    def fetch(self, index: int) -> Fetched:
        pixels = self._row(index).read(self.resolution).float() / 255
        return Fetched(_encode(self.base, pixels[None]))

    def _row(self, index: int) -> Member:
        if index in self._recent:
            return self._recent[index]
        if not 0 <= self._next <= index:
            self._stream, self._next = self.shards.stream(self.seed, *self.part), 0
        row: Member | None = None
        while self._next <= index:
            row, self._next = next(self._stream), self._next + 1
        assert row is not None
        self._recent[index] = row
        return row


@torch.no_grad()
def _encode(base: Base, pixels: Tensor) -> Tensor:
    """Latents (C, h, w) on the CPU of one picture (1, 3, R, R) in [0, 1]."""
    return base.encode_pictures(pixels.to(base.device))[0].cpu()
