"""Batches: rows drawn from their sources as an objective asks for them, with noise and text."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..adapters.hint import SIGNAL
from ..bases import Base
from ..conditioning import Conditioning
from ..objectives import Batch, Objective
from . import seeds
from .sources import Source


class Texts:
    """Captions as the denoiser is conditioned on them.

    Args:
        base: tokenizes and encodes.
        captions: those that may come, encoded here and kept; None when there are too many. Where an adapter stands on
            the text encoder, what comes is encoded every time.
    """

    def __init__(self, base: Base, captions: Iterable[str] | None = None) -> None:
        self.base = base
        self._kept: Conditioning | None = None
        self._place: dict[str, int] = {}
        paths = [path for each in base.attachments for path in each.adapters]
        if captions is None or base.changes_condition(paths):
            return
        each = sorted(set(captions))
        with torch.no_grad():
            self._kept = base.condition(each)
        self._place = {caption: i for i, caption in enumerate(each)}

    def of(self, captions: Sequence[str]) -> Conditioning:
        """The conditioning of captions, one row each."""
        if self._kept is not None:
            return self._kept.rows([self._place[caption] for caption in captions])
        each = sorted(set(captions))  # a few captions fill a batch: encode each once
        with self.base.awake():
            return self.base.condition(each).rows([each.index(caption) for caption in captions])


class Batches:
    """Draws batches as a function of (seed, process, step, part), so that a resumed run sees the same ones.

    Args:
        base: what is adapted.
        objective: says how many rows there are, at which noise levels, and from where.
        sources: name -> source, for every name of the objective's.
        texts: encodes the captions.
        batch_size: as the user set it.
        parts: batches in a step (gradient accumulation).
        seed, process: what the draws depend on, beside the step.
    """

    def __init__(
        self,
        base: Base,
        objective: Objective,
        sources: Mapping[str, Source],
        texts: Texts,
        *,
        batch_size: int,
        parts: int,
        seed: int,
        process: int,
    ) -> None:
        self.base, self.objective, self.sources, self.texts = base, objective, sources, texts
        self.batch_size, self.parts, self.seed, self.process = batch_size, parts, seed, process
        self.rows = objective.rows(batch_size)
        self._shape = sources[objective.sources[0]].fetch(0).latents.shape  # (C, h, w)

    def batch(self, step: int, part: int) -> Batch:
        """The batch of one accumulation part of one step."""
        rng = seeds.rng(self.seed, self.process, step, part)
        place = (step * self.parts + part) * self.batch_size
        candidates = {
            name: iter(self.sources[name].pick(rng, self.batch_size, place)) for name in self.objective.sources
        }
        noise = seeds.normal((self.rows, *self._shape), rng)
        draw = self.objective.draw(rng, self.batch_size)
        picked = [(name, *next(candidates[name])) for name in draw.sources]
        fetched = [self.sources[name].fetch(index) for name, index, _ in picked]
        signals = [row.signal for row in fetched if row.signal is not None]
        condition = self.texts.of([caption for *_, caption in picked])
        device = self.base.device
        if signals:
            condition = replace(condition, control={SIGNAL: torch.stack(signals).to(device)})
        return Batch(
            latents=torch.stack([row.latents for row in fetched]).to(device),
            noise=noise.to(device),
            timesteps=draw.timesteps.to(device),
            condition=condition,
            sources=draw.sources,
            weights=None if draw.weights is None else draw.weights.to(device),
            mask=_masks([row.mask for row in fetched], self._shape[-2:], device),
            captions=tuple(caption for *_, caption in picked),
        )


def _masks(masks: Sequence[Tensor | None], size: Sequence[int], device: torch.device) -> Tensor | None:
    """(N, 1, h, w) with ones for rows without a mask; None when no row has one."""
    if all(mask is None for mask in masks):
        return None
    return torch.stack([torch.ones(1, *size) if mask is None else mask for mask in masks]).to(device)
