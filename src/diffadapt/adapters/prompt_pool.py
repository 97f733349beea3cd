"""Learning to Prompt: a pool of learned tokens, of which each picture gets those that suit it (Wang et al. 2022, L2P,
arXiv:2112.08654).

    q = what the untouched transformer makes of the picture's class token
    chosen = the n prompts whose keys have the highest cosine with q                   (equation 3)
    x = [class token, patches, chosen prompts]                                         (equation 4, placed behind)
    penalty = pull * mean over the batch of sum over chosen of (1 - cos(q, key))       (equation 5)

A baseline for learning classes in sequence: the transformer stays frozen, and training of the pool goes on from task to
task. Behind the class token and the patches instead of before them, and without position embedding, the order of
tokens means nothing to the transformer. Only vision transformers of transformers' layout can take it.

Strength other than 0 and 1 multiplies the prompts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..conditioning import PICTURES
from ..config import option
from ..errors import Refused
from .adapter import Adapter, Attached, Method, SideInputs

TOKENS = "input.tokens"  # the role of the layer that makes tokens of a picture


@dataclass(frozen=True, kw_only=True)
class PromptPool(Method):
    """A pool of prompts with keys; every picture takes the nearest ones into its tokens."""

    name: ClassVar[str] = "prompt_pool"
    title: ClassVar[str] = "L2P"
    recipes: ClassVar[tuple[str, ...]] = ("classify",)
    merges: ClassVar[bool] = False

    pool: int = option(10, "prompts in the pool", low=1)
    chosen: int = option(5, "prompts that each picture gets, at most as many as are in the pool", low=1)
    length: int = option(5, "tokens of a prompt", low=1)
    pull: float = option(0.5, "weight of the term that draws the chosen keys to the picture", low=0)

    def summary(self) -> str:
        return f"{self.title}, {self.chosen} of {self.pool} prompts"

    def default_roles(self, known: Iterable[str]) -> list[str]:
        return [TOKENS]

    def adapts(self, layer: nn.Module) -> bool:
        return hasattr(layer, "cls_token")

    def build(self, layer: nn.Module, path: str, role: str, generator: torch.Generator) -> Adapter:
        return PromptPoolAdapter(layer, self, path, generator)

    def share(self, attachment: Attached, side: SideInputs) -> None:
        """Asks the untouched network about the pictures, and lets every picture choose."""
        assert side.control is not None  # the adapter needs it
        if PICTURES not in side.control:
            raise Refused(f"L2P chooses by the pictures; give them as control[{PICTURES!r}]")
        holder: Any = attachment
        enabled = holder.enabled
        try:
            holder.enabled = False
            with torch.no_grad():
                query = attachment.base.features(side.control[PICTURES])
        finally:
            holder.enabled = enabled
        for adapter in attachment.adapters.values():
            if isinstance(adapter, PromptPoolAdapter):
                adapter.query = F.normalize(query.float(), dim=1)

    def notes(self, attachment: Attached) -> Mapping[str, float]:
        """How many prompts of the pool the last batch used."""
        pools = [each for each in attachment.adapters.values() if isinstance(each, PromptPoolAdapter)]
        return {"prompts_used": float(sum(len(each.choice().unique()) for each in pools))}


class PromptPoolAdapter(Adapter):
    """Parameters `prompts` (pool, length, D) and `keys` (pool, D).

    Attributes:
        query: (N, D) unit rows, of the pictures that come next.
    """

    needs = frozenset({"control"})
    query: Tensor | None = None

    def __init__(self, layer: nn.Module, method: PromptPool, path: str, generator: torch.Generator) -> None:
        super().__init__(layer)
        if method.chosen > method.pool:
            raise Refused(f"method.chosen is {method.chosen}, but the pool has {method.pool} prompts; lower it")
        token: Any = getattr(self.innermost(), "cls_token", None)
        if token is None:
            raise Refused(f"L2P adds to the tokens of a vision transformer; {path} makes none")
        self.method = method
        shape = (method.pool, method.length, token.shape[-1])
        self.prompts = nn.Parameter((0.02 * torch.randn(shape, generator=generator)).to(token.device))
        self.keys = nn.Parameter(torch.randn(shape[0], shape[2], generator=generator).to(token.device))

    @property
    def patch_embeddings(self) -> Any:
        """The layer's own, whose precision transformers looks up on its way in."""
        return getattr(self.innermost(), "patch_embeddings")  # noqa: B009  (nn.Module types it as a tensor)

    def forward(self, x: Tensor, **rest: Any) -> Tensor:
        """Pictures (N, 3, R, R) -> tokens (N, L, D); transformers hands further arguments on by name."""
        return self.adapted(x, **rest) if self.strength != 0 else self.layer(x, **rest)

    def adapted(self, x: Tensor, **rest: Any) -> Tensor:
        tokens = self.layer(x, **rest)
        chosen = self.choice()
        if len(chosen) != len(tokens):
            raise Refused(f"L2P chose prompts for {len(chosen)} pictures and got {len(tokens)}; call begin() first")
        prompts = self.prompts[chosen].flatten(1, 2)  # (N, chosen length, D)
        return torch.cat([tokens, (self.strength * prompts).to(tokens.dtype)], 1)

    def likeness(self) -> Tensor:
        """(N, pool) cosine of each picture's query and each key."""
        if self.query is None:
            raise Refused("L2P has not seen the pictures; call attachment.begin() with them first")
        return self.query @ F.normalize(self.keys, dim=1).T

    def choice(self) -> Tensor:
        """(N, chosen) the numbers of the prompts that each picture gets."""
        return self.likeness().detach().topk(self.method.chosen, dim=1).indices

    def penalty(self) -> Tensor | None:
        """Draws the keys that were chosen to the pictures that chose them."""
        if self.query is None or not self.method.pull:
            return None
        near = self.likeness().gather(1, self.choice())
        return self.method.pull * (1 - near).sum(1).mean()
