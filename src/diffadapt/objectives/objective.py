"""The seam between a batch and the backward pass: what an objective decides, and what it is given.

An objective sees noise levels before it sees data. For each batch it draws them and says where every row comes from
(the pictures to learn, class pictures, a memory of the base, pictures that a teacher is asked about); then the rows are
fetched, and it gives a loss for each and their reduction to the scalar that is minimised.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ..conditioning import Conditioning


@dataclass(frozen=True)
class Draw:
    """The rows of one batch, before any of them is fetched.

    Args:
        timesteps: (N,) int64 steps of the base's training schedule.
        sources: where each row comes from, N names out of the objective's `sources`.
        weights: (N,) weights for an objective that reduces by them, or None.
    """

    timesteps: Tensor
    sources: tuple[str, ...]
    weights: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Rows that are ready for the denoiser, on its device.

    Args:
        latents: (N, C, h, w) clean; noise: (N, C, h, w) standard normal; timesteps: (N,) int64.
        condition: what the rows are conditioned on, control signals included; handed on to the denoiser as it is.
        sources: where each row comes from.
        weights: (N,) as drawn, or None.
        mask: (N, 1, h, w) non-negative weights of places, ones where a picture has none; None without any mask.
        captions: of the rows, for an objective that asks another model about them; "" where dropped.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    condition: Conditioning
    sources: tuple[str, ...]
    weights: Tensor | None = None
    mask: Tensor | None = None
    captions: tuple[str, ...] = ()

    def of(self, source: str) -> Tensor:
        """(N,) bool: the rows that come from a source."""
        return torch.tensor([each == source for each in self.sources], device=self.latents.device)


class Model(Protocol):
    """The denoiser as an objective calls it: noisy (N, C, h, w), timesteps (N,), condition -> (N, C, h, w)."""

    def __call__(self, noisy: Tensor, timesteps: Tensor, condition: Conditioning, /) -> Tensor:
        """The prediction of the adapted base."""
        ...

    def with_variance(self, noisy: Tensor, timesteps: Tensor, condition: Conditioning, /) -> tuple[Tensor, Tensor]:
        """The same, and the variance that the base learned beside it, both (N, C, h, w)."""
        ...

    def teacher(self, noisy: Tensor, timesteps: Tensor, condition: Conditioning, /) -> Tensor:
        """The prediction of the untouched base, without gradient."""
        ...


class Objective(ABC):
    """A training objective. `sources` are the names of all places that rows may come from."""

    sources: tuple[str, ...] = ("target",)

    def rows(self, batch_size: int) -> int:
        """How many rows a batch has; each source has `batch_size` candidates for them."""
        return batch_size

    @abstractmethod
    def draw(self, rng: np.random.Generator, batch_size: int) -> Draw:
        """The noise level and the source of every row.

        Args:
            rng: the only source of randomness.
            batch_size: as the user set it; no source can give more rows than this.
        """

    @abstractmethod
    def losses(self, model: Model, batch: Batch) -> Tensor:
        """The loss of each row, (N,) float32."""

    @abstractmethod
    def reduce(self, losses: Tensor, batch: Batch) -> Tensor:
        """The scalar that is minimised."""


def spread_timesteps(rng: np.random.Generator, rows: int, length: int) -> Tensor:
    """(rows,) timesteps below `length`, one from each equal share of the range: less variance than plain draws."""
    return torch.from_numpy(spread(rng, rows) * length).long().clamp(max=length - 1)


def spread(rng: np.random.Generator, rows: int) -> np.ndarray:
    """(rows,) shares in [0, 1) in any order, one from each equal part of the range: each alone is uniform."""
    return (rng.permutation(rows) + rng.random(rows)) / max(rows, 1)
