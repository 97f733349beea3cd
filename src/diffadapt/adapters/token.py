"""Learned tokens: new words whose embeddings are trained (textual inversion, Gal et al. 2022, arXiv:2208.01618).

A `TokenAdapter` stands on a text encoder's embedding table. Identities below `first` are the base's own; the new ones
follow. `Token` is the method that trains nothing else; every other method may bring new tokens too.

Strength moves each vector on the straight line from its initial value to the trained one. In a sequence of tasks the
vectors of past tasks are frozen: they move into a buffer, out of every optimizer's and weight decay's reach.
"""

from collections.abc import Iterable, Mapping
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
    title: ClassVar[str] = "token learning (textual inversion)"
    recipes: ClassVar[tuple[str, ...]] = ("subject", "sequence")
    needs_word: ClassVar[bool] = True
    words_only: ClassVar[bool] = True

    vectors: int = option(1, "vectors per new token, 1 to 16; each takes one place of the prompt", low=1, high=16)

    def default_roles(self, known: Iterable[str]) -> list[str]:
        return []

    def vectors_per_word(self) -> int:
        return self.vectors

    def build(self, layer: nn.Module, path: str, role: str, generator: torch.Generator) -> Adapter:
        raise TypeError("Token adapts no layer; its vectors belong to the attachment's tokens")


class TokenAdapter(Adapter):
    """New rows of one embedding table: parameter `vectors` (n, D), and buffer `past` (k, D) of the tasks before.

    Args:
        layer: the embedding table, or another token adapter on it.
        initial: (n, D) where the vectors start and where strength 0 puts them.
        drawn: whether a row of `initial` is not the base's own, as a random one, so that files must hold it.
    """

    initial: Tensor
    past: Tensor

    def __init__(self, layer: nn.Module, initial: Tensor, *, drawn: bool = False) -> None:
        super().__init__(layer)
        self.register_buffer("initial", initial.detach().float().clone(), persistent=False)
        self.register_buffer("past", self.initial[:0].clone(), persistent=False)
        self.vectors = nn.Parameter(self.initial.clone())
        self.drawn = drawn
        self.first = 0  # identity of the first new token; set when the tokenizer is made

    def forward(self, x: Tensor) -> Tensor:
        """Identities (N, L) -> embeddings (N, L, D); the base's own rows are untouched at every strength."""
        return self.adapted(x)

    def adapted(self, x: Tensor) -> Tensor:
        index = x - self.first
        is_new = (index >= 0) & (index < len(self.initial))
        if not is_new.any():  # one of many words that are not in the prompts
            return self.layer(x)
        rows = self.layer(x.masked_fill(is_new, 0))
        new = self.rows()[index.masked_fill(~is_new, 0)]
        return torch.where(is_new[..., None], new.to(rows.dtype), rows)

    def rows(self) -> Tensor:
        """The vectors (k + n, D) at the current strength, those of past tasks first."""
        trained = torch.cat([self.past, self.vectors]) if len(self.past) else self.vectors
        return self.initial + self.strength * (trained - self.initial)

    @torch.no_grad()
    def next_(self, initial: Tensor, *, drawn: bool) -> None:
        """Freezes the vectors and goes on with new ones.

        Args:
            initial: (n, D) where the next task's vectors start; as many rows as before.
            drawn: whether they were drawn at random.
        """
        initial = initial.to(self.initial)
        self.past = torch.cat([self.past, self.vectors.detach()])
        self.initial = torch.cat([self.initial, initial])
        self.vectors.copy_(initial)
        self.drawn = self.drawn or drawn

    def own_state(self) -> dict[str, Tensor]:
        state = super().own_state()
        state |= {"past": self.past} if len(self.past) else {}
        return state | ({"initial": self.initial} if self.drawn else {})

    @torch.no_grad()
    def make_room_(self, tensors: Mapping[str, Tensor]) -> None:
        self.drawn = self.drawn or "initial" in tensors
        past = tensors.get("past", self.initial[:0])
        if past.ndim != 2 or past.shape[1] != self.initial.shape[1] or len(past) >= len(self.initial):
            return
        self.past = past.to(self.initial).clone()
        rows = len(self.initial) - len(past)
        if rows != len(self.vectors):
            self.vectors.data = self.initial[len(past) :].clone()
