"""Learned tokens: new words whose embeddings are trained (textual inversion, Gal et al. 2022, arXiv:2208.01618).

A `TokenAdapter` stands on a text encoder's embedding table. Identities below `first` are the base's own; the new ones
follow. `Token` is the method that trains nothing else; every other method may bring new tokens too.

Strength moves each vector on the straight line from its initial value to the trained one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..config import option
from .adapter import Adapter, Method


@dataclass(frozen=True, kw_only=True)
class Token(Method):
    """Textual inversion: only the new token's vectors train."""

    name: ClassVar[str] = "token"

    vectors: int = option(1, "vectors per new token, 1 to 16; each takes one place of the prompt", low=1, high=16)

    def default_roles(self, known: Iterable[str]) -> list[str]:
        return []

    def build(self, layer: nn.Module, path: str, generator: torch.Generator) -> Adapter:
        raise TypeError("Token adapts no layer; its vectors belong to the attachment's tokens")


class TokenAdapter(Adapter):
    """New rows of one embedding table: parameter `vectors` (n, D).

    Args:
        layer: the embedding table, or another token adapter on it.
        initial: (n, D) where the vectors start and where strength 0 puts them.
    """

    initial: Tensor

    def __init__(self, layer: nn.Module, initial: Tensor) -> None:
        super().__init__(layer)
        self.register_buffer("initial", initial.detach().float().clone(), persistent=False)
        self.vectors = nn.Parameter(self.initial.clone())
        self.first = 0  # identity of the first new token; set when the tokenizer is made

    def forward(self, x: Tensor) -> Tensor:
        """Identities (N, L) -> embeddings (N, L, D); the base's own rows are untouched at every strength."""
        return self.adapted(x)

    def adapted(self, x: Tensor) -> Tensor:
        index = x - self.first
        mine = (index >= 0) & (index < len(self.vectors))
        if not mine.any():  # one of many words that are not in the prompts
            return self.layer(x)
        rows = self.layer(x.masked_fill(mine, 0))
        new = self.rows()[index.masked_fill(~mine, 0)]
        return torch.where(mine[..., None], new.to(rows.dtype), rows)

    def rows(self) -> Tensor:
        """The vectors (n, D) at the current strength."""
        return self.initial + self.strength * (self.vectors - self.initial)
