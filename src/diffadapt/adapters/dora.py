"""DoRA: a weight's magnitude and direction, adapted apart (Liu et al. 2024, arXiv:2402.09353).

    W' = m V / ||V||,    V = W0 + (alpha / r) B A        (equation 5; ||.|| of each neuron's weights)

m (out,) trains beside LoRA's A and B and starts at ||W0||, so that training starts at the base. The norm is taken over
what comes into a neuron, as PEFT and the paper's code do; LyCORIS can also take it over what leaves an input. As the
paper proposes (section 4.3), ||V|| is a constant to the gradient.

Strength t moves both parts: V_t = W0 + t (alpha / r) B A and m_t = ||W0|| + t (m - ||W0||), so that at every strength
the weights of a neuron have the norm m_t exactly.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .adapter import Adapter, effective_bias, effective_weight
from .ia3 import scaled
from .lora import LowRank, LowRankMethod

TINY = 1e-12  # below any norm: a neuron without weights stays without them


@dataclass(frozen=True, kw_only=True)
class DoRA(LowRankMethod):
    """LoRA that gives the direction of each neuron's weights, and a magnitude of its own for each neuron."""

    name: ClassVar[str] = "dora"
    title: ClassVar[str] = "DoRA"

    def build(self, layer: nn.Module, path: str, role: str, generator: torch.Generator) -> Adapter:
        return DoRAAdapter(layer, self, path, generator)


class DoRAAdapter(LowRank):
    """DoRA on one layer; parameters `magnitude` (out,), `down` (r, in, ...) and `up` (out, r)."""

    def __init__(self, layer: nn.Module, method: DoRA, path: str, generator: torch.Generator) -> None:
        super().__init__(layer, method, path, generator)
        self.magnitude = nn.Parameter(self._norms(effective_weight(layer))[1].clone())

    def adapted(self, x: Tensor) -> Tensor:
        gains = self._gain(effective_weight(self.layer)) - 1
        # the gain is the weights', not the bias's
        return scaled(self.updated(x), gains, self.innermost(), effective_bias(self.layer))

    def weight(self, w0: Tensor) -> Tensor:
        v = self.updated_weight(w0)
        return (v * self._gain(w0).view(-1, *[1] * (w0.ndim - 1))).to(w0.dtype)

    @torch.no_grad()
    def take_norms_(self) -> None:
        """Sets the magnitudes to the norms of the updated weights, so that the layer is that of LoRA alone."""
        self.magnitude.copy_(self._norms(effective_weight(self.layer))[0])

    def _gain(self, w0: Tensor) -> Tensor:
        """m_t / ||V_t|| of each neuron, (out,)."""
        norm, norm_before = self._norms(w0)
        return self._magnitude_from(norm_before) / norm

    @torch.no_grad()
    def magnitude_now(self) -> Tensor:
        """m_t, (out,): the norm of each neuron's weights at the current strength."""
        return self._magnitude_from(self._norms(effective_weight(self.layer))[1])

    @torch.no_grad()
    def scales(self) -> bool:
        """Whether a neuron's norm is another than the base's at the current strength."""
        return not torch.equal(self.magnitude_now(), self._norms(effective_weight(self.layer))[1])

    def _magnitude_from(self, norm_before: Tensor) -> Tensor:
        return torch.lerp(norm_before, self.magnitude, self.strength)

    @torch.no_grad()
    def _norms(self, w0: Tensor) -> tuple[Tensor, Tensor]:
        """||V_t|| and ||W0||, without V: ||w + B A||^2 = ||w||^2 + 2 B (A w) + B (A A^T) B^T with w's row of B."""
        with torch.autocast(w0.device.type, enabled=False):  # a norm that is off by bfloat16's rounding is another gain
            w, a, b = w0.flatten(1).to(self.up.dtype), self.down.flatten(1), self.strength * self.scale * self.up
            before = torch.linalg.vecdot(w, w)
            squares = before + (b * (2 * (w @ a.t()) + b @ (a @ a.t()))).sum(1)
        # before the root, which of a sum that is rounded below 0 is no number
        return squares.clamp(min=TINY**2).sqrt(), before.clamp(min=TINY**2).sqrt()
