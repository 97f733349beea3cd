"""LoRA as another tool's file holds it, and the adapter made of it: ranks and alphas of every layer as they were.

A file with magnitudes is DoRA. Its layers without one get the norms of their updated weights, which change nothing.
"""

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..adapters import Attachment, DoRA, LoRA, attach
from ..adapters.dora import DoRAAdapter
from ..adapters.lora import LowRank
from ..errors import Refused
from ..network import Network


@dataclass
class FoundLoRA:
    """A LoRA of another tool, as a reader returns it.

    Attributes:
        source: what the file is, for people.
        down: layer path -> (r, in) or (r, in, kh, kw).
        up: layer path -> (out, r), or (out, r, 1, 1) of a convolution.
        alpha: layer path -> its update is multiplied by alpha / r.
        magnitude: of DoRA, layer path -> (out,) the norms of its neurons' weights.
        dropout: share of input features that training dropped.
        remarks: what else people should know.
    """

    source: str
    down: dict[str, Tensor] = field(default_factory=dict)
    up: dict[str, Tensor] = field(default_factory=dict)
    alpha: dict[str, float] = field(default_factory=dict)
    magnitude: dict[str, Tensor] = field(default_factory=dict)
    dropout: float = 0.0
    remarks: list[str] = field(default_factory=list)

    @property
    def layers(self) -> int:
        return len(self.down)

    def describe(self, attachment: Attachment) -> list[str]:
        """How faithful it is: nothing is lost."""
        ranks = sorted({len(down) for down in self.down.values()})
        shown = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
        return [f"rank {shown}; every value, rank and alpha is kept as it was"]

    def attach(self, base: Network) -> Attachment:
        """The adapter on its base. Layers of its roles that the file leaves out keep an update of zero.

        Raises:
            Refused: the shapes do not fit the base.
        """
        roles = [role for role, paths in base.roles.items() if not self.down.keys().isdisjoint(paths)]
        values = {}
        for path, down in self.down.items():
            values |= self._shaped(path, down, base.module(path).get_parameter("weight").shape)
        attachment = attach(base, self._method(base.select(roles)), roles)
        for path in attachment.adapters.keys() - self.down.keys():
            adapter = attachment.adapters[path]
            assert isinstance(adapter, LowRank)
            values |= {f"{path}.down": torch.zeros_like(adapter.down), f"{path}.up": adapter.up}
        magnitudes = {
            f"{path}.magnitude": self.magnitude.get(path, adapter.magnitude)
            for path, adapter in attachment.layers.items()
            if isinstance(adapter, DoRAAdapter)
        }
        attachment.load_state_dict(values | magnitudes)
        for path, adapter in attachment.layers.items():
            if isinstance(adapter, DoRAAdapter) and path not in self.magnitude:
                adapter.take_norms_()
        return attachment

    def _shaped(self, path: str, down: Tensor, layer: torch.Size) -> dict[str, Tensor]:
        """The pair in our shapes; a 1x1 convolution's may come as a linear layer's, and the other way round."""
        rank, up = len(down), self.up[path]
        if down.shape[1:].numel() != layer[1:].numel() or up.numel() != layer[0] * rank:
            raise Refused(
                f"{self.source} does not fit this base: at {path} it has {tuple(up.shape)} x {tuple(down.shape)}, "
                f"and the layer is {tuple(layer)}; was it trained on another base (SDXL, or 2.x for 1.x)?"
            )
        shaped = {f"{path}.down": down.float().reshape(rank, *layer[1:]), f"{path}.up": up.float().reshape(-1, rank)}
        return shaped

    def _method(self, layers: dict[str, str]) -> LoRA | DoRA:
        """The settings: the commonest rank and alpha, and those of the layers that differ."""
        ranks = {path: len(down) for path, down in self.down.items()}
        rank = Counter(ranks.values()).most_common(1)[0][0]
        alpha = Counter(self.alpha.values()).most_common(1)[0][0]
        own = all(self.alpha[path] == ranks[path] for path in ranks)
        ranks |= {path: 1 for path in layers if path not in ranks}
        return (DoRA if self.magnitude else LoRA)(
            rank=rank,
            alpha=None if own else alpha,
            dropout=self.dropout,
            ranks=tuple(f"{path}={each}" for path, each in ranks.items() if each != rank),
            alphas=() if own else tuple(f"{path}={each!r}" for path, each in self.alpha.items() if each != alpha),
        )
