"""Batches for learning to follow a control signal: latents, text and signals of pairs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..bases import Base
from ..data.cache import TensorCache
from ..data.control_pairs import ControlPairs
from . import seeds
from .draws import encoded, shuffled, spread_timesteps


@dataclass(frozen=True)
class ControlBatch:
    """Shapes: latents, noise (N, C, h, w); timesteps (N,); token_ids (N, L); text (N, L, D); signal (N, 3, H, W)."""

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    token_ids: Tensor
    text: Tensor
    signal: Tensor


class ControlBatches:
    """Draws batches as a function of (seed, process, step, part), so that a resumed run sees the same ones.

    Pictures are decoded when they are drawn, and encoded the first time. Texts are encoded every time: there may be
    too many of them to keep, and an adapter may stand on the text encoder.

    Args:
        base: the base.
        pairs: pictures, signals, captions.
        resolution: side of the training pictures, in pixels.
        batch_size: rows of a batch.
        caption_dropout: share of captions replaced by the empty prompt; the signal stays.
        cache: keeps latents.
        seed, process: what the draws depend on, beside the step.
        parts: batches in a step (gradient accumulation).
    """

    def __init__(
        self,
        base: Base,
        pairs: ControlPairs,
        *,
        resolution: int,
        batch_size: int,
        caption_dropout: float,
        cache: TensorCache,
        seed: int,
        process: int,
        parts: int,
    ) -> None:
        self.base, self.pairs, self.resolution, self.rows = base, pairs, resolution, batch_size
        self.caption_dropout, self.parts, self.seed, self.process = caption_dropout, parts, seed, process
        self.cache = cache

    def batch(self, step: int, part: int) -> ControlBatch:
        """The batch of one accumulation part of one step."""
        rng = seeds.rng(self.seed, self.process, step, part)
        place = (step * self.parts + part) * self.rows
        chosen = shuffled(len(self.pairs), self.rows, first=place, seed=self.seed, process=self.process)
        pixels, signal = self.pairs.read(chosen, self.resolution)
        drawn = [self.pairs.pairs[i] for i in chosen]
        latents = torch.stack(
            [encoded(self.base, row, pair.content(), self.cache) for row, pair in zip(pixels, drawn, strict=True)]
        )
        captions = ["" if rng.random() < self.caption_dropout else pair.caption for pair in drawn]
        noise = seeds.normal(tuple(latents.shape), rng)
        timesteps = spread_timesteps(rng, self.rows, self.base.num_train_timesteps)
        device = self.base.device
        return ControlBatch(
            latents=latents.to(device),
            noise=noise.to(device),
            timesteps=timesteps.to(device),
            token_ids=self.base.tokenize(captions),
            text=self.base.encode_prompts(captions),
            signal=signal.to(device),
        )
