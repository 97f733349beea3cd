"""StyleInject: branches chosen by the features, and a style transfer of the layer's own output.

Zhou, Bai, Yang, Zhao 2024, arXiv:2401.13942. From the paper, with its letters:

    s  = softmax(R(x))               one weight per branch; R a linear layer on the pooled input, or a 1x1 convolution
    Dh = B sum_i s_i A_i x           n parallel A_i (r, in), one shared B (out, r)
    h' = transfer(h, Dh)             h = W0 x + b, the frozen layer's output

`transfer` is AdaIN in the paper: the channels of h are normalised, their variance is set anew, the feature is rebuilt.
The paper's own formula for the new variance could not be obtained, so that no `variance` here is called the paper's.
With mu, sigma and zeta = (h - mu) / sigma of each sample and channel over tokens or places:

    none           h + Dh                                     branches and router without a style transfer
    std_of_sum     std(h + Dh) zeta + mu                      a gain per channel; mean and pattern stay those of h
    sigma_map      (sigma + Dh) zeta + mu = h + Dh zeta       a gain per place
    sigma_pooled   (sigma + mean(Dh)) zeta + mu               a signed gain per channel
    full_adain     std(h + Dh) zeta + mean(h + Dh)            the mean moves too

B starts at 0 and R at 0, so each of them starts at the base, with all branches alike. Strength multiplies Dh. For
ablations R may stay as it was drawn, and each branch may have a B_i of its own: Dh = sum_i s_i B_i A_i x.

Dh is never made where its statistics are enough: with z = sum_i s_i A_i x, of r channels,
var(h + Dh) = var(h) + 2 B cov(z, h) + B cov(z, z) B^T. The effect depends on the input, so there is nothing to merge.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import option
from ..errors import Refused
from .adapter import Adapter, Attached, Method

VARIANCES = ("none", "std_of_sum", "sigma_map", "sigma_pooled", "full_adain")
TEXT_ROLES = ("cross_attention.key", "cross_attention.value")  # their inputs are words, not visual features
EPS = 1e-5  # inside every root, as in normalisation layers
GAIN = (0.1, 10.0)  # the range of a channel's gain: a channel that hardly varies is neither put out nor blown up


@dataclass(frozen=True, kw_only=True)
class StyleInject(Method):
    """Several low-rank branches behind a router, and a style transfer of each layer's output."""

    name: ClassVar[str] = "style_inject"
    title: ClassVar[str] = "StyleInject"
    merges: ClassVar[bool] = False

    branches: int = option(4, "number n of parallel down projections", low=1)
    rank: int = option(4, "rank r of each, 1 to the smaller side of the layer", low=1)
    variance: str = option("full_adain", "how the output's variance is set anew; none adds", choices=VARIANCES)
    scope: str = option("sample", "what is routed: each sample, or each token (place)", choices=("sample", "token"))
    pool: str = option("mean", "how a sample's tokens (places) are pooled for the router", choices=("mean", "sum"))
    temperature: float = option(1.0, "the router's logits are divided by it, above 0", low=1e-4)
    router: str = option(
        "learned", "learned, or random: drawn once and kept, an ablation", choices=("learned", "random")
    )
    shared_up: bool = option(True, "one up projection B for all branches; false gives each its own, an ablation")
    text: str = option(
        "none",
        "keys and values of the text: none (adapted without a style transfer), exclude (left as they are) or same",
        choices=("none", "exclude", "same"),
    )

    def summary(self) -> str:
        return f"{self.title}, {self.branches} branches of rank {self.rank}, variance {self.variance}"

    def meaning(self, path: str) -> Mapping[str, Any]:
        names = ("variance", "scope", "pool", "temperature", "text")
        return {name: getattr(self, name) for name in names}

    def default_roles(self, known: Iterable[str]) -> list[str]:
        roles = super().default_roles(known)
        return [role for role in roles if self.text != "exclude" or role not in TEXT_ROLES]

    def build(self, layer: nn.Module, path: str, role: str, generator: torch.Generator) -> Adapter:
        if role in TEXT_ROLES and self.text == "exclude":
            raise Refused(f'text = "exclude" leaves {path} as it is; leave {", ".join(TEXT_ROLES)} out of the roles')
        variance = "none" if role in TEXT_ROLES and self.text == "none" else self.variance
        return StyleInjectAdapter(layer, self, path, generator, variance=variance)

    def notes(self, attachment: Attached) -> Mapping[str, float]:
        """Entropy in bits of the last step's routing, averaged over layers.

        `router_entropy` is that of the mean over the batch: log2 n when the branches are used alike, 0 when one is
        left. `router_entropy_single` is that of a single choice: as large as the other where the router does not tell
        the rows of a batch apart.
        """
        routed = [a.routed for a in attachment.layers.values() if isinstance(a, StyleInjectAdapter) and len(a.routed)]
        if not routed:
            return {}
        used = torch.stack([s.mean(0) for s in routed])  # (layers, n)
        return {
            "router_entropy": entropy(used).mean().item(),
            "router_entropy_single": entropy(torch.cat(routed)).mean().item(),
        }


class StyleInjectAdapter(Adapter):
    """StyleInject on one linear or convolution layer.

    Parameters: `down` (n, r, in, ...), `up` (out, r), `router.weight` (n, in) and `router.bias` (n,). With
    `shared_up=False` `up` is (n, out, r); with `router="random"` the router is no parameter, but is saved.
    """

    def __init__(
        self, layer: nn.Module, method: StyleInject, path: str, generator: torch.Generator, *, variance: str
    ) -> None:
        super().__init__(layer)
        inner = self.innermost()
        _refuse_misfit(inner, method, path)
        assert isinstance(inner.weight, Tensor)
        shape, device = inner.weight.shape, inner.weight.device  # (out, in) or (out, in, kh, kw)
        bound = 1 / math.sqrt(math.prod(shape[1:]))  # kaiming_uniform with a = sqrt(5), as LoRA starts
        down = (torch.rand(method.branches, method.rank, *shape[1:], generator=generator) * 2 - 1) * bound
        self.down = nn.Parameter(down.to(device))
        branches = () if method.shared_up else (method.branches,)
        self.up = nn.Parameter(torch.zeros(*branches, shape[0], method.rank, device=device))
        self.router = nn.Linear(shape[1], method.branches, device=device)
        nn.init.zeros_(self.router.weight)
        nn.init.zeros_(self.router.bias)
        if method.router == "random":  # logits of the size of the pooled input
            drawn = torch.randn(method.branches, shape[1], generator=generator) / math.sqrt(shape[1])
            for name, kept in (("weight", drawn), ("bias", torch.zeros(method.branches))):
                delattr(self.router, name)
                self.router.register_buffer(name, kept.to(device))
        self.method, self.variance = method, variance
        self.routed = torch.empty(0, method.branches)  # (rows, n) the weights of the last training step, for the log

    def adapted(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        with _full_precision(x.device.type):  # statistics and softmax in the parameters' precision
            up = self.up if self.method.shared_up else self.up.permute(1, 0, 2).flatten(1)  # (out, r) or (out, n r)
            up = up if self.strength == 1 else self.strength * up
            if isinstance(self.innermost(), nn.Conv2d):
                z = self._mixed_map(x.to(up.dtype))  # (N, r or n r, H, W)
                return transfer(_tokens(h), _tokens(z), up, self.variance).mT.unflatten(2, h.shape[2:])
            tokens = x.to(up.dtype).reshape(len(x), -1, x.shape[-1])  # (N, L, in), L = 1 for vectors
            z = self._mixed(tokens)  # (N, L, r or n r)
            return transfer(h.reshape(len(h), -1, h.shape[-1]), z, up, self.variance).view_as(h)

    # --- the router ---------------------------------------------------------------------------------------------------

    def route(self, x: Tensor) -> Tensor:
        """s for an input of the layer: (N, n), or with `scope="token"` (N, L, n) and (N, H, W, n); each sums to 1."""
        x = x.to(self.up.dtype)
        places = x.permute(0, 2, 3, 1) if isinstance(self.innermost(), nn.Conv2d) else x
        if self.method.scope == "sample" and places.ndim > 2:
            dims = tuple(range(1, places.ndim - 1))
            places = places.mean(dims) if self.method.pool == "mean" else places.sum(dims)
        logits = self.router(places)
        return (logits if self.method.temperature == 1 else logits / self.method.temperature).softmax(-1)

    def _routed(self, x: Tensor) -> Tensor:
        s = self.route(x)
        self._keep(s)
        return s

    def _keep(self, s: Tensor) -> None:
        """Keeps s of a training step for the log."""
        if self.training:
            self.routed = s.detach().flatten(0, -2)

    # --- the branches -------------------------------------------------------------------------------------------------

    def _mixed(self, x: Tensor) -> Tensor:
        """z = sum_i s_i A_i x of tokens (N, L, in): (N, L, r); for B_i of their own all s_i A_i x, (N, L, n r)."""
        if self.method.scope == "sample" and self.method.shared_up:
            router, method = self.router, self.method
            z, s = _SampleMix.apply(x, self.down, router.weight, router.bias, method.pool, method.temperature)
            self._keep(s)
            return z
        s = self._routed(x)
        z = F.linear(x, self.down.flatten(0, 1)).unflatten(-1, self.down.shape[:2])  # (N, L, n, r)
        z = z * (s if s.ndim == 3 else s[:, None])[..., None]
        return z.sum(2) if self.method.shared_up else z.flatten(2)

    def _mixed_map(self, x: Tensor) -> Tensor:
        """The same of feature maps (N, in, H, W): (N, r, H', W') or (N, n r, H', W')."""
        inner, s, (n, r) = self.innermost(), self._routed(x), self.down.shape[:2]
        assert isinstance(inner, nn.Conv2d)
        z = inner._conv_forward(x, self.down.flatten(0, 1), None).unflatten(1, (n, r))
        places = s[:, :, None, None]
        if s.ndim > 2:
            places = F.adaptive_avg_pool2d(s.permute(0, 3, 1, 2), (z.shape[-2], z.shape[-1]))  # as the stride does
        z = z * places[:, :, None]
        return z.sum(1) if self.method.shared_up else z.flatten(1, 2)


class _SampleMix(torch.autograd.Function):
    """z = x A(s)^T with A(s) = sum_i s_i A_i, one for each sample: what `route` and a weighted sum give.

    Of the routing and its way back all but two products are small: (N, n), (N, r, in).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, down: Tensor, weight: Tensor, bias: Tensor, pool: str, temperature: float
    ) -> tuple[Tensor, Tensor]:
        n, r, inputs = down.shape
        pooled = x.mean(1) if pool == "mean" else x.sum(1)  # (N, in)
        logits = torch.addmm(bias, pooled, weight.t())
        s = (logits if temperature == 1 else logits / temperature).softmax(-1)
        mixed = torch.mm(s, down.view(n, -1)).view(-1, r, inputs)
        ctx.save_for_backward(x, down, weight, pooled, s, mixed)
        ctx.heat, ctx.share = temperature, 1 / x.shape[1] if pool == "mean" else 1.0
        ctx.mark_non_differentiable(s)
        return torch.bmm(x, mixed.mT), s

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, None, None]:
        (x, down, weight, pooled, s, mixed), dz = ctx.saved_tensors, gradients[0]
        d_mixed = torch.bmm(dz.mT, x).flatten(1)  # (N, r in)
        ds = d_mixed @ down.flatten(1).t()  # (N, n)
        d_logits = (ds - (s * ds).sum(1, keepdim=True)).mul_(s)
        if ctx.heat != 1:
            d_logits /= ctx.heat
        dx = torch.bmm(dz, mixed).add_((d_logits @ weight)[:, None], alpha=ctx.share)
        return dx, (s.t() @ d_mixed).view_as(down), d_logits.t() @ pooled, d_logits.sum(0), None, None


def transfer(h: Tensor, z: Tensor, up: Tensor, variance: str) -> Tensor:
    """The style transfer of features h by Dh = B z; see the top of the file.

    Args:
        h: (N, L, out) features in any precision.
        z: (N, L, r) the mixed down projections.
        up: (out, r) B, times the strength.
        variance: one of `VARIANCES`. A single token (L = 1) has no variance and gets h + Dh.

    Returns:
        (N, L, out) in h's precision
    """
    if variance == "none" or h.shape[1] == 1:
        if h.dtype == z.dtype:  # product and sum in one pass
            b = up.t().contiguous()  # (r, out): so laid out, its gradient and that of z cost a fraction
            return torch.addmm(h.reshape(-1, len(up)), z.reshape(-1, z.shape[-1]), b).view(h.shape)
        return h + F.linear(z, up).to(h.dtype)
    if variance == "sigma_map":
        h_full = h.to(z.dtype)
        centred = h_full - h_full.mean(1, keepdim=True)
        sigma = (torch.linalg.vecdot(centred, centred, dim=1) / h.shape[1] + EPS).sqrt()
        return torch.addcmul(h_full, z @ (up / sigma[..., None]).mT, centred).to(h.dtype)
    return _ChannelGain.apply(h, z, up, variance)


class _ChannelGain(torch.autograd.Function):
    """h' = g (h - mu) + mu + shift for `std_of_sum`, `full_adain` and `sigma_pooled`, a g for each sample and channel.

    With c = h - mu and z' = z - mean(z), all that g depends on are small:

        v = mean(c^2) + eps                             K = mean(c z')        M = mean(z' z')
        v' = v + 2 B K + B M B^T,  g = sqrt(v' / v)     or  g = 1 + B mean(z) / sqrt(v)

    and the way back goes through them again, without an array of the features' size for each step in between.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, z: Tensor, up: Tensor, variance: str) -> Tensor:
        tokens, features, b = h.shape[1], h.to(z.dtype), up.t()  # b: (r, out)
        c = features - features.mean(1, keepdim=True)  # (N, L, out)
        squares = (c * c).sum(1).add_(tokens * EPS)  # L v, (N, out)
        z_mean = z.mean(1)  # (N, r)
        z_centred = z - z_mean[:, None]
        if variance == "sigma_pooled":
            half = z.new_empty(0)
            raw = (z_mean @ b).div_((squares / tokens).sqrt_()).add_(1)
            kept = gain = raw.clamp(-GAIN[1], GAIN[1])
        else:
            k = torch.bmm(z_centred.mT, c)  # L K^T, (N, r, out)
            half = torch.baddbmm(k, torch.bmm(z_centred.mT, z_centred), b.expand(len(z), -1, -1))  # L (K^T + M B^T)
            raw = (k.add_(half) * b).sum(1).add_(squares).div_(squares)  # v' / v
            kept = raw.clamp(GAIN[0] ** 2, GAIN[1] ** 2)
            gain = kept.sqrt()
        result = torch.addcmul(features, c, (gain - 1)[:, None])  # a gain of 1 gives h bit for bit
        if variance == "full_adain":
            result += (z_mean @ b)[:, None]
        ctx.save_for_backward(c, z_centred, z_mean, up, squares, half, raw, kept, gain)
        ctx.variance = variance
        return result.to(h.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        c, z_centred, z_mean, up, squares, half, raw, kept, gain = ctx.saved_tensors
        tokens, g = c.shape[1], gradients[0].to(c.dtype)
        g_sum = g.sum(1)  # (N, out)
        # of the gain, 0 where it was clamped
        d_gain = (g * c).sum(1) * (raw == kept)
        d_sum = d_up = dz = None
        if ctx.variance == "sigma_pooled":
            d_v = d_gain * (1 - raw) / squares  # times 2 / L, as c takes it
            d_shift = d_gain / (squares / tokens).sqrt_()  # of B mean(z)
        else:
            d_sum = d_gain.div_(gain).div_(squares)  # of v', times 2 / L
            d_v = d_sum * (1 - raw)
            d_shift = g_sum if ctx.variance == "full_adain" else None
        rest = torch.addcmul(g_sum, g_sum, gain, value=-1).div_(tokens)
        dh = torch.addcmul(rest[:, None], g, gain[:, None])
        dh.addcmul_(c, d_v[:, None])
        if d_sum is not None:
            d_k = d_sum[:, None] * up.t()  # (N, r, out)
            dh.baddbmm_(z_centred, d_k)
            dz = torch.bmm(c, d_k.mT).baddbmm_(z_centred, d_k @ up)
            d_up = (half * d_sum[:, None]).sum(0).t()
        if d_shift is not None:
            of_mean = (d_shift @ up / tokens)[:, None]
            dz = of_mean.expand_as(z_centred) if dz is None else dz + of_mean
            d_up = d_shift.t() @ z_mean if d_up is None else d_up + d_shift.t() @ z_mean
        assert dz is not None and d_up is not None
        return dh.to(gradients[0].dtype), dz, d_up, None


def _full_precision(device: str) -> contextlib.AbstractContextManager[Any]:
    """Switches autocast off, where it is on."""
    on = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else contextlib.nullcontext()


def _tokens(x: Tensor) -> Tensor:
    """(N, C, H, W) -> a view (N, H W, C)."""
    return x.flatten(2).mT


def _refuse_misfit(inner: nn.Module, method: StyleInject, path: str) -> None:
    if not isinstance(inner, nn.Linear | nn.Conv2d):
        raise Refused(f"StyleInject adapts linear and convolution layers; {path} is a {type(inner).__name__}")
    if isinstance(inner, nn.Conv2d) and inner.groups != 1:
        raise Refused(f"StyleInject cannot adapt {path}: a convolution with {inner.groups} groups; leave its role out")
    shape = inner.weight.shape
    largest = min(shape[0], math.prod(shape[1:]))
    if method.rank > largest:
        raise Refused(f"rank {method.rank} is larger than layer {path} allows ({tuple(shape)}: at most {largest})")


# --- what the router does ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def observed_routes(attachment: Attached) -> Iterator[dict[str, list[Tensor]]]:
    """Within the block, collects what every router answers.

    Yields:
        layer path -> one (N, n) tensor for each call of the layer (the mean over places with `scope="token"`)
    """
    seen: dict[str, list[Tensor]] = {}
    hooks = []
    for path, adapter in attachment.adapters.items():
        if not isinstance(adapter, StyleInjectAdapter):
            continue

        def keep(module: nn.Module, args: tuple[Tensor, ...], path: str = path) -> None:
            assert isinstance(module, StyleInjectAdapter)
            with torch.no_grad():
                s = module.route(args[0])
            seen.setdefault(path, []).append(s.flatten(1, -2).mean(1) if s.ndim > 2 else s)

        hooks.append(adapter.register_forward_pre_hook(keep))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def entropy(weights: Tensor) -> Tensor:
    """Entropy in bits of weights (..., n) that sum to 1: log2 n when branches are used alike, 0 for a single one."""
    return -(weights * weights.clamp(min=1e-12).log2()).sum(-1)
