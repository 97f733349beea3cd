"""IA3: a learned gain of each channel (Liu et al. 2022, arXiv:2205.05638).

    h' = l * (W0 x + b)        (section 3.3; l (out,) starts at 1)

The paper scales keys, values and the inner activations of the feed-forward layers; here any layer's output can be
scaled, and by default the attention's are. What is stored is g = l - 1. Strength t multiplies it: 1 + t g.

The smallest method there is: one number for each channel, so that it cannot be given as many parameters as a LoRA.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import Refused
from .adapter import Adapter, Mergeable, Method


@dataclass(frozen=True, kw_only=True)
class IA3(Method):
    """A learned gain of each output channel, and nothing else."""

    name: ClassVar[str] = "ia3"
    title: ClassVar[str] = "IA3"

    def build(self, layer: nn.Module, path: str, role: str, generator: torch.Generator) -> Adapter:
        return IA3Adapter(layer, path)


class IA3Adapter(Mergeable):
    """IA3 on one linear or convolution layer; parameter `gain` (out,)."""

    def __init__(self, layer: nn.Module, path: str) -> None:
        super().__init__(layer)
        inner = self.innermost()
        if not isinstance(inner, nn.Linear | nn.Conv2d):
            raise Refused(f"IA3 adapts linear and convolution layers; {path} is a {type(inner).__name__}")
        self.gain = nn.Parameter(torch.zeros(len(inner.weight), device=inner.weight.device))

    def adapted(self, x: Tensor) -> Tensor:
        return scaled(self.layer(x), self.strength * self.gain, self.innermost())

    def weight(self, w0: Tensor) -> Tensor:
        return ((1 + self.strength * self.gain).view(-1, *[1] * (w0.ndim - 1)) * w0).to(w0.dtype)

    def bias(self, b0: Tensor | None) -> Tensor | None:
        return None if b0 is None else ((1 + self.strength * self.gain) * b0).to(b0.dtype)


def scaled(y: Tensor, gains: Tensor, inner: nn.Module, bias: Tensor | None = None) -> Tensor:
    """(1 + gains) (y - bias) + bias for a layer's output y: (..., out) or (N, out, H, W), with gains and bias (out,).

    What is rounded to y's precision is the gain alone: in bfloat16 1 + 0.003 is 1.
    """
    gains, bias = gains.to(y.dtype), None if bias is None else bias.to(y.dtype)
    if isinstance(inner, nn.Conv2d):
        gains, bias = gains[:, None, None], None if bias is None else bias[:, None, None]
    return torch.addcmul(y, y if bias is None else y - bias, gains)
