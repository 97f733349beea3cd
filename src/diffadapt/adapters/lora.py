"""LoRA: low-rank adaptation (Hu et al. 2021, arXiv:2106.09685).

    h = W0 x + (alpha / r) B A x        (equation 3; A random, B zero, so training starts at the base)

W0 (out, in) is frozen, A (r, in) and B (out, r) train. A convolution is adapted as kohya's LoCon does: A becomes a
convolution with the layer's own kernel, stride and padding into r channels, B a 1x1 convolution, which is the same
formula on the flattened kernel (out, in * kh * kw).

Strength multiplies the update: W0 + strength (alpha / r) B A.
"""

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import option
from ..errors import Refused
from .adapter import Adapter, Attached, Mergeable, Method, Shared


@dataclass(frozen=True, kw_only=True)
class LowRankMethod(Method):
    """The settings that LoRA and what stands on it share."""

    rank: int = option(4, "rank r of the update, 1 to the smaller side of the layer", low=1)
    alpha: float | None = option(None, "the update is multiplied by alpha / rank; unset means alpha = rank", low=0)
    dropout: float = option(
        0.0, "share of input features dropped on the low-rank path while training, 0 to 1", low=0, high=1
    )
    ranks: tuple[str, ...] = option(
        (), "other ranks of some layers, each as LAYER=RANK; LAYER is a path or a pattern such as unet.mid_block.*"
    )
    alphas: tuple[str, ...] = option((), "other alphas of some layers, each as LAYER=ALPHA, as in ranks")

    def rank_of(self, path: str) -> int:
        """The rank r of the layer at `path`."""
        own = _of_layer(self.ranks, path, "ranks")
        if own is None:
            return self.rank
        if own < 1 or own != int(own):
            raise Refused(f"ranks: expected a whole number from 1 up for {path}, got {own:g}")
        return int(own)

    def alpha_of(self, path: str) -> float:
        """The alpha of the layer at `path`: its update is multiplied by alpha / r."""
        own = _of_layer(self.alphas, path, "alphas")
        if own is None:
            own = self.alpha
        return self.rank_of(path) if own is None else own

    def meaning(self, path: str) -> Mapping[str, Any]:
        return {"alpha / rank": self.alpha_of(path) / self.rank_of(path)}

    def settle(self, attachment: Attached) -> Shared | None:
        for option_name, entries in (("ranks", self.ranks), ("alphas", self.alphas)):
            for entry in entries:
                if all(_of_layer([entry], path, option_name) is None for path in attachment.layers):
                    layer, nearest = entry.rpartition("=")[0], ""
                    if near := difflib.get_close_matches(layer, attachment.layers, n=1, cutoff=0.0):
                        nearest = f"; the nearest is {near[0]}"
                    raise Refused(f"{option_name}: {layer!r} fits none of the layers that are adapted{nearest}")
        return None

    def summary(self) -> str:
        return f"{self.title}, rank {self.rank}"


@dataclass(frozen=True, kw_only=True)
class LoRA(LowRankMethod):
    """Low-rank matrices beside linear and convolution layers. A 4 to 32 rank suits one subject."""

    name: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA"
    recipes: ClassVar[tuple[str, ...]] = ("subject", "control", "style", "sequence", "classify")

    def build(self, layer: nn.Module, path: str, role: str, generator: torch.Generator) -> Adapter:
        return LoRAAdapter(layer, self, path, generator)


def _of_layer(entries: Iterable[str], path: str, option_name: str) -> float | None:
    """The number of the first "LAYER=NUMBER" that names the layer, or None.

    Raises:
        Refused: an entry is not of this form.
    """
    for entry in entries:
        layer, _, number = entry.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not layer or not math.isfinite(value):
            raise Refused(f"{option_name}: expected LAYER=NUMBER, such as unet.mid_block.*=8, got {entry!r}")
        if layer == path or fnmatchcase(path, layer):
            return value
    return None


class LowRank(Mergeable):
    """One linear or convolution layer with a low-rank update: `down` (r, in, ...) is A, `up` (out, r) is B."""

    def __init__(self, layer: nn.Module, method: LowRankMethod, path: str, generator: torch.Generator) -> None:
        super().__init__(layer)
        inner, title = self.innermost(), method.title
        if not isinstance(inner, nn.Linear | nn.Conv2d):
            raise Refused(f"{title} adapts linear and convolution layers; {path} is a {type(inner).__name__}")
        if isinstance(inner, nn.Conv2d) and inner.groups != 1:
            raise Refused(f"{title} cannot adapt {path}: a convolution with {inner.groups} groups; leave its role out")
        shape = inner.weight.shape  # (out, in) or (out, in, kh, kw)
        largest = min(shape[0], math.prod(shape[1:]))
        rank, alpha = method.rank_of(path), method.alpha_of(path)
        if rank > largest and not method.ranks:  # a rank of one's own is meant, and files of other tools have such
            raise Refused(f"rank {rank} is larger than layer {path} allows ({tuple(shape)}: at most {largest})")
        device = inner.weight.device
        bound = 1 / math.sqrt(math.prod(shape[1:]))  # kaiming_uniform with a = sqrt(5), as the reference implementation
        down = (torch.rand(rank, *shape[1:], generator=generator) * 2 - 1) * bound
        self.down = nn.Parameter(down.to(device))
        self.up = nn.Parameter(torch.zeros(shape[0], rank, device=device))
        self.alpha, self.scale = alpha, alpha / rank
        self.dropout = method.dropout

    def updated(self, x: Tensor) -> Tensor:
        """The layer's output with the update: W0 x + b + strength (alpha / r) B A x."""
        inner = self.innermost()
        h = x.to(self.down.dtype)
        if self.dropout:
            h = F.dropout(h, self.dropout, self.training)
        y, scale = self.layer(x), self.strength * self.scale
        if isinstance(inner, nn.Conv2d):
            h = inner._conv_forward(h, self.down, None)  # (N, r, H', W')
            return y + F.conv2d(h, (scale * self.up)[:, :, None, None]).to(y.dtype)
        # Of these shapes, with few columns, products are slow where the few stand last: so z and B stand transposed,
        # and with them their gradients.
        z, up = self.down @ h.flatten(0, -2).t(), self.up.t().contiguous()  # (r, rows), (r, out)
        if y.dtype == z.dtype:  # product, scale and sum in one pass
            return torch.addmm(y.flatten(0, -2), z.t(), up, alpha=scale).view_as(y)
        return y + (scale * (z.t() @ up)).view_as(y).to(y.dtype)

    def updated_weight(self, w0: Tensor) -> Tensor:
        """W0 + strength (alpha / r) B A in the parameters' precision."""
        update = self.strength * self.scale * (self.up @ self.down.flatten(1))
        return w0.to(update.dtype) + update.view_as(w0)


class LoRAAdapter(LowRank):
    """LoRA on one layer."""

    def adapted(self, x: Tensor) -> Tensor:
        return self.updated(x)

    def weight(self, w0: Tensor) -> Tensor:
        return self.updated_weight(w0).to(w0.dtype)
