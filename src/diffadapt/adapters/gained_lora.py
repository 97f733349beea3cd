"""LoRA with a learned gain of each output channel: what a gain adds to LoRA, without a router.

    h' = (1 + g) * (W0 x + b + (alpha / r) B A x)        g (out,) starts at 0

No paper's method but a control: StyleInject's style transfer is a gain of each channel that depends on the input, and
this is the same gain when it does not. Strength t multiplies g and B A.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .adapter import Adapter
from .ia3 import scaled
from .lora import LowRank, LowRankMethod


@dataclass(frozen=True, kw_only=True)
class GainedLoRA(LowRankMethod):
    """LoRA, and a learned gain of each output channel; a control for StyleInject."""

    name: ClassVar[str] = "gained_lora"
    title: ClassVar[str] = "LoRA with gains"

    def build(self, layer: nn.Module, path: str, role: str, generator: torch.Generator) -> Adapter:
        return GainedLoRAAdapter(layer, self, path, generator)


class GainedLoRAAdapter(LowRank):
    """On one layer; parameters `gain` (out,), `down` (r, in, ...) and `up` (out, r)."""

    def __init__(self, layer: nn.Module, method: GainedLoRA, path: str, generator: torch.Generator) -> None:
        super().__init__(layer, method, path, generator)
        self.gain = nn.Parameter(torch.zeros(len(self.up), device=self.up.device))

    def adapted(self, x: Tensor) -> Tensor:
        return scaled(self.updated(x), self.strength * self.gain, self.innermost())

    def weight(self, w0: Tensor) -> Tensor:
        factors = (1 + self.strength * self.gain).view(-1, *[1] * (w0.ndim - 1))
        return (factors * self.updated_weight(w0)).to(w0.dtype)

    def bias(self, b0: Tensor | None) -> Tensor | None:
        return None if b0 is None else ((1 + self.strength * self.gain) * b0).to(b0.dtype)
