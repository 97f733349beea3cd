"""OFT and COFT: orthogonal fine-tuning (Qiu et al. 2023, arXiv:2306.07280v3).

    W' = diag(s) W R^T        R = blockdiag(R_1 .. R_r)        R_j = (I + Q_j)(I - Q_j)^-1,  Q_j^T = -Q_j

The rows of W (out, in) are the layer's neurons. One orthogonal R turns them all (equation 2, section 3.3), so every
norm, every angle between two neurons and with them the hyperspherical energy stay what they were. A convolution's
neurons are its flattened filters (appendix D). s is 1, or with `rescale` a positive gain per neuron (section 3.4).

Only the strict upper triangle of each Q_j is kept, so Q_j is skew whatever the optimizer does. The Cayley transform is
exact, R = 2M - I with M = (I - Q)^-1, and needs but dL/dQ = 2 M^T (dL/dR) M^T on the way back.

Strength t is the Cayley transform of t Q, never a mixture of matrices: orthogonal at every t, the inverse at -1.

COFT bounds how far each block may turn. The sources measure that in ways that differ by orders of magnitude under one
name, so that a radius counts together with its `constraint`; see `OFT.bound`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..config import option
from ..errors import Refused
from .adapter import Adapter, Attached, Mergeable, Method, SideInputs, effective_bias, effective_weight
from .ia3 import scaled

CONSTRAINTS = ("none", "angle", "frobenius", "official", "peft")
RESCALES = ("none", "joint", "after")
WITHOUT_FLOAT64 = ("mps",)  # devices


@dataclass(frozen=True, kw_only=True)
class OFT(Method):
    """One block-diagonal rotation of the inputs of each linear or convolution layer."""

    name: ClassVar[str] = "oft"
    title: ClassVar[str] = "OFT"
    recipes: ClassVar[tuple[str, ...]] = ("subject", "control", "style", "sequence", "classify")

    block_size: int = option(16, "side b of each rotation; must divide the layer's inputs (in, or in * kh * kw)", low=2)
    blocks: int | None = option(None, "number r of blocks of each layer, the paper's way; replaces block_size", low=1)
    share_blocks: bool = option(False, "one rotation for all blocks of a layer")
    constraint: str = option(
        "none",
        "COFT, what the radius bounds in each block: angle (degrees), frobenius (|R - I|), official (the paper's "
        "code), peft (PEFT's eps)",
        choices=CONSTRAINTS,
    )
    radius: float | None = option(None, "COFT's radius, above 0; angle takes degrees below 180", low=0)
    rescale: str = option(
        "none", "a positive gain per neuron: none, joint (trained with R) or after (R stays, the gain trains)",
        choices=RESCALES,
    )  # fmt: skip
    dropout: float = option(0.0, "chance of each block to be the identity in a training step, 0 to 1", low=0, high=1)

    def summary(self) -> str:
        return f"{self.title}, " + (f"blocks {self.blocks}" if self.blocks else f"block size {self.block_size}")

    def build(self, layer: nn.Module, path: str, role: str, generator: torch.Generator) -> Adapter:
        if (self.constraint == "none") != (self.radius is None):
            raise Refused(
                f"COFT needs a radius and what it bounds: got constraint = {self.constraint!r} and radius = "
                f"{self.radius}; for example constraint = 'angle', radius = 30 (degrees)"
            )
        if self.radius is not None and (self.radius <= 0 or (self.constraint == "angle" and self.radius >= 180)):
            range_ = "between 0 and 180 degrees" if self.constraint == "angle" else "above 0"
            raise Refused(f"COFT's radius must be {range_} for constraint {self.constraint!r}, got {self.radius:g}")
        return OFTAdapter(layer, self, path)

    def bound(self, block_size: int, blocks: int) -> tuple[float, float]:
        """The largest norm of Q_j that the constraint allows, as (spectral norm, Frobenius norm); inf for no bound.

            angle       no direction turns by more than `radius` degrees: |Q_j|_2 <= tan(radius / 2)
            frobenius   |R_j - I|_F <= radius, by |Q_j|_F <= radius / 2
            official    the paper's code: |Q_j|_F <= radius b^2 / sqrt(r)
            peft        PEFT's eps: |Q_j|_F <= radius / sqrt(r)

        The last two count a shared block as r = 1.
        """
        radius, r = self.radius or math.inf, 1 if self.share_blocks else blocks
        if self.constraint == "angle":
            return math.tan(math.radians(radius) / 2), math.inf
        factor = {"frobenius": 0.5, "official": block_size**2 / math.sqrt(r), "peft": 1 / math.sqrt(r)}
        return math.inf, radius * factor.get(self.constraint, math.inf)

    def share(self, attachment: Attached, side: SideInputs) -> None:
        solve_together(adapter for adapter in attachment.adapters.values() if isinstance(adapter, OFTAdapter))


def solve_together(adapters: Iterable["OFTAdapter"]) -> None:
    """Solves all blocks of equal size of all layers in one batched call."""
    groups: dict[tuple[int, torch.device], list[OFTAdapter]] = {}
    for adapter in adapters:
        if adapter.strength != 0:
            groups.setdefault((adapter.block_size, adapter.q.device), []).append(adapter)
    for (size, _), group in groups.items():
        solved = _Cayley.apply(torch.cat([adapter.strength * adapter.q for adapter in group]), size)
        for adapter, rotations in zip(group, solved.split([len(adapter.q) for adapter in group]), strict=True):
            adapter.keep(rotations)


class OFTAdapter(Mergeable):
    """OFT on one linear or convolution layer.

    Parameters: `q` (r, b(b-1)/2), or (1, b(b-1)/2) when blocks are shared: the strict upper triangles, row by row; and
    with `rescale` `log_gain` (out,), s = exp(log_gain).
    """

    def __init__(self, layer: nn.Module, method: OFT, path: str) -> None:
        super().__init__(layer)
        inner = self.innermost()
        if isinstance(inner, nn.Linear):
            self.inputs, outputs = inner.in_features, inner.out_features
        elif isinstance(inner, nn.Conv2d):
            self.inputs, outputs = inner.in_channels * math.prod(inner.kernel_size), inner.out_channels
            if inner.groups != 1:
                raise Refused(f"OFT cannot adapt {path}: a convolution with {inner.groups} groups; leave its role out")
            if not inner.weight.is_floating_point():
                raise Refused(f"OFT cannot adapt {path}: a convolution with quantised weights ({inner.weight.dtype})")
            if not _rebuilds(layer):
                raise Refused(
                    f"OFT turns the filters of {path}, which the adapter beneath it makes depend on the input"
                )
        else:
            raise Refused(f"OFT adapts linear and convolution layers; {path} is a {type(inner).__name__}")
        self.block_size, self.blocks = _divide(self.inputs, method, path)
        self.share_blocks, self.dropout = method.share_blocks, method.dropout
        self.bound = method.bound(self.block_size, self.blocks)
        device = inner.weight.device
        distinct = 1 if self.share_blocks else self.blocks
        self.q = nn.Parameter(torch.zeros(distinct, self.block_size * (self.block_size - 1) // 2, device=device))
        self.q.requires_grad_(method.rescale != "after")
        self.log_gain = None
        if method.rescale != "none":
            self.log_gain = nn.Parameter(torch.zeros(outputs, device=device))
        self._kept: tuple[int, float, Tensor] | None = None  # q's version, strength, rotations solved by `OFT.share`

    # --- the rotation -------------------------------------------------------------------------------------------------

    def rotations(self) -> Tensor:
        """R_1 .. R_r at the present strength, (r, b, b); (1, b, b) where blocks are shared."""
        if self._kept is not None:
            version, strength, kept = self._kept
            trains = torch.is_grad_enabled() and self.q.requires_grad
            if version == self.q._version and strength == self.strength and (kept.requires_grad or not trains):
                return kept
        return _Cayley.apply(self.strength * self.q, self.block_size)

    def keep(self, rotations: Tensor) -> None:
        """Caches rotations that were solved with those of other layers; invalid once q or strength changes."""
        self._kept = (self.q._version, self.strength, rotations)

    def _blocks(self) -> Tensor:
        """(r, b, b) as the layer uses them: shared ones repeated, dropped ones the identity."""
        rotations = self.rotations().expand(self.blocks, -1, -1)
        if not (self.dropout and self.training):
            return rotations
        kept = torch.rand(self.blocks, 1, 1, device=rotations.device) >= self.dropout
        return torch.where(kept, rotations, torch.eye(self.block_size, device=rotations.device))

    # --- the layer ----------------------------------------------------------------------------------------------------

    def adapted(self, x: Tensor) -> Tensor:
        inner = self.innermost()
        if isinstance(inner, nn.Conv2d):
            weight = self.weight(effective_weight(self.layer)).to(x.dtype)
            return inner._conv_forward(x, weight, effective_bias(self.layer))
        if not self._turns_inputs(x):
            return nn.functional.linear(x, self.weight(effective_weight(self.layer)), effective_bias(self.layer))
        y = self.layer(_Rotate.apply(x, self._blocks().to(x.dtype)))
        if self.log_gain is None:
            return y
        return scaled(y, (self.strength * self.log_gain).expm1(), inner, effective_bias(self.layer))

    def _turns_inputs(self, x: Tensor) -> bool:
        """Whether to turn the T inputs rather than the n neurons, by what each costs beyond the frozen layer.

        In multiplications: T d b forward and twice that backward, against n d b each way and T n d for the weight's
        gradient. Weights that are adapted or quantised stay as they are, and so do those in half precision and those
        whose products a GPU rounds to TF32: small turns would be rounded off.
        """
        layer = self.layer
        if not isinstance(layer, nn.Linear) or layer.weight.dtype != torch.float32 or x.dtype != torch.float32:
            return True
        if x.is_cuda and torch.backends.cuda.matmul.allow_tf32:
            return True
        t, n, b = x.numel() // self.inputs, layer.out_features, self.block_size
        return 3 * t * b <= 2 * n * b + t * n if torch.is_grad_enabled() else t <= n

    def weight(self, w0: Tensor) -> Tensor:
        if not w0.is_floating_point():
            raise Refused(
                f"the weight is quantised ({w0.dtype}) and cannot be turned; sample with the adapter attached, or load "
                "the base unquantised to merge"
            )
        blocks = self._blocks()
        turned = _Rotate.apply(w0.flatten(1).to(blocks.dtype), blocks.mT)
        if self.log_gain is not None:
            turned = self._gain()[:, None] * turned
        return turned.view(w0.shape).to(w0.dtype)

    def _gain(self) -> Tensor:
        assert self.log_gain is not None
        return (self.strength * self.log_gain).exp()

    # --- COFT ---------------------------------------------------------------------------------------------------------

    def project_(self) -> None:
        """Scales each block that left its ball back to the edge; what is inside stays as it is, bit for bit."""
        self._kept = None  # fused optimizers do not count q's versions
        spectral, frobenius = self.bound
        if not math.isfinite(min(spectral, frobenius)):
            return
        norm = math.sqrt(2) * self.q.norm(dim=1, keepdim=True)  # |Q_j|_F
        if math.isfinite(frobenius):
            self.q *= (frobenius / norm).clamp(max=1)
        else:
            # Singular values of a skew matrix come in pairs, so |Q|_2 <= |Q|_F / sqrt(2): most blocks need no more.
            outside = (norm.squeeze(1) > math.sqrt(2) * spectral).nonzero().squeeze(1)
            if len(outside):
                place = "cpu" if self.q.device.type in WITHOUT_FLOAT64 else self.q.device
                q = skew(self.q[outside].to(place, torch.float64), self.block_size)
                largest = torch.linalg.eigvalsh(q.mT @ q)[:, -1:].clamp(min=0).sqrt()
                self.q[outside] *= (spectral / largest).clamp(max=1).to(self.q)


def skew(v: Tensor, size: int, diagonal: float = 0.0) -> Tensor:
    """Strict upper triangles (N, b(b-1)/2), row by row -> skew matrices (N, b, b), plus a multiple of the identity."""
    upper, lower = _triangles(size, v.device)
    places = torch.zeros(size * size, dtype=torch.long, device=v.device)
    places[upper] = torch.arange(1, len(upper) + 1, device=v.device)
    places[lower] = places[upper] + len(upper)
    return torch.cat([v.new_full((len(v), 1), diagonal), v, -v], 1).index_select(1, places).view(-1, size, size)


@lru_cache
def _triangles(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the strict upper triangle of a (b, b) matrix is once it is flattened, row by row, and where its mirror."""
    i, j = torch.triu_indices(size, size, 1, device=device)
    return i * size + j, j * size + i


def _divide(inputs: int, method: OFT, path: str) -> tuple[int, int]:
    """(b, r) of a layer with `inputs` inputs."""
    asked = f"block size {method.block_size} does" if method.blocks is None else f"{method.blocks} blocks do"
    divisor = method.block_size if method.blocks is None else method.blocks
    size = divisor if method.blocks is None else inputs // divisor
    if inputs % divisor or size < 2:
        fitting = [str(b) for b in range(2, min(inputs, 128) + 1) if inputs % b == 0]
        raise Refused(
            f"OFT: {asked} not divide the {inputs} inputs of {path}; block sizes that do: "
            f"{', '.join(fitting) or inputs}"
        )
    return size, inputs // size


def _rebuilds(layer: nn.Module) -> bool:
    """Whether a layer has one weight, whatever the input: no adapter on it that depends on the input."""
    while isinstance(layer, Mergeable):
        layer = layer.layer
    return not isinstance(layer, Adapter)


class _Cayley(torch.autograd.Function):
    """Strict upper triangles (N, b(b-1)/2) of Q -> R = 2 (I - Q)^-1 - I (N, b, b), solved in double precision."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, size: int) -> Tensor:
        # float32 alone strays to 2e-5 for large Q
        precise = v.dtype if v.device.type in WITHOUT_FLOAT64 else torch.float64
        with torch.autocast(v.device.type, enabled=False):
            m = torch.linalg.inv(skew(-v, size, 1.0).to(precise)).to(v.dtype)
        r = 2 * m
        r.diagonal(dim1=1, dim2=2).sub_(1)
        ctx.save_for_backward(r)  # rather than M: R is kept in any case
        return r

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        m = ctx.saved_tensors[0] / 2
        m.diagonal(dim1=1, dim2=2).add_(0.5)
        with torch.autocast(m.device.type, enabled=False):
            dq = (m.mT @ gradients[0] @ m.mT).flatten(1)
        upper, lower = _triangles(m.shape[-1], m.device)
        return 2 * (dq.index_select(1, upper) - dq.index_select(1, lower)), None


class _Rotate(torch.autograd.Function):
    """x (..., r b) with blocks B (r, b, b) -> x diag(B_1 .. B_r).

    Products are written straight into place, which also keeps autocast from rounding them.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: Tensor) -> Tensor:
        ctx.save_for_backward(x, blocks)
        return _times(x, blocks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, blocks = ctx.saved_tensors
        g = gradients[0]
        dx = _times(g, blocks.mT) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return dx, None
        return dx, torch.bmm(_by_block(x, blocks).mT, _by_block(g, blocks), out=torch.empty_like(blocks))


def _times(x: Tensor, blocks: Tensor) -> Tensor:
    y = torch.empty(x.shape, dtype=blocks.dtype, device=x.device)
    torch.bmm(_by_block(x, blocks), blocks, out=_by_block(y, blocks))
    return y


def _by_block(x: Tensor, blocks: Tensor) -> Tensor:
    """(..., r b) -> a view (r, T, b) where the memory allows it."""
    r, b, _ = blocks.shape
    return x.reshape(-1, r, b).transpose(0, 1)
