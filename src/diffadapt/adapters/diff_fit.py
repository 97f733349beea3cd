"""DiffFit: biases, norms and a scale factor for each output of attention and feed-forward (arXiv:2304.06648).

    y = gamma * f(x; W, b),   gamma starts at 1

(Xie et al. 2023, section 3.1.) With a base of classes the rows of the new ones train besides, `attach(..., classes=)`.
The published code scales an attention's output twice, as it leaves the projection and as it joins the residual; the two
are one factor here. Strength moves gamma and biases on the straight line from the base to what was trained.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..config import option
from .adapter import Adapter, Method
from .ia3 import scaled
from .selective import SelectiveAdapter, trained_names, whole

SCALED = ("self_attention.", "cross_attention.", "feed_forward.out")
BLOCK = re.compile(r"\btransformer_blocks\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class DiffFit(Method):
    """Trains biases and norms, and scale factors in the first blocks."""

    name: ClassVar[str] = "diff_fit"
    title: ClassVar[str] = "DiffFit"
    recipes: ClassVar[tuple[str, ...]] = ("subject", "control", "style", "sequence")

    scaled_blocks: int = option(14, "transformer blocks with scale factors, from the first; DiT-XL has 28", low=0)

    def default_roles(self, known: Iterable[str]) -> list[str]:
        return [role for role in known if not role.startswith("text.")]

    def adapts(self, layer: nn.Module) -> bool:
        return not isinstance(layer, nn.Embedding) and whole(layer)

    def build(self, layer: nn.Module, path: str, role: str, generator: torch.Generator) -> Adapter:
        is_norm = not isinstance(layer, nn.Linear | nn.Conv2d)
        names = list(trained_names(layer, "full" if is_norm else "bias"))
        block = BLOCK.search(path)
        scaled = isinstance(layer, nn.Linear) and role.startswith(SCALED)
        in_reach = block is not None and int(block[1]) < self.scaled_blocks
        return DiffFitAdapter(layer, names, path, scaled=scaled and in_reach)


class DiffFitAdapter(SelectiveAdapter):
    """A trainable copy of one layer's bias, or of all of a norm, and `gamma` (out,) where the output is scaled."""

    def __init__(self, layer: nn.Module, names: Iterable[str], path: str, *, scaled: bool) -> None:
        super().__init__(layer, names, path)
        weight = layer.get_parameter("weight")
        self.gamma = nn.Parameter(torch.ones(len(weight), device=weight.device)) if scaled else None

    def adapted(self, x: Tensor) -> Tensor:
        y = super().adapted(x)
        return y if self.gamma is None else scaled(y, self.strength * (self.gamma - 1), self.innermost())

    def weight(self, w0: Tensor) -> Tensor:
        w = super().weight(w0)
        return w if self.gamma is None else (self._scale(self.gamma)[:, None] * w.float()).to(w0.dtype)

    def bias(self, b0: Tensor | None) -> Tensor | None:
        b = super().bias(b0)
        return b if b is None or self.gamma is None else (self._scale(self.gamma) * b.float()).to(b.dtype)

    def _scale(self, gamma: Tensor) -> Tensor:
        return gamma if self.strength == 1 else 1 + self.strength * (gamma - 1)
