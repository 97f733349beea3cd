"""A base's autoencoder: pictures to latents and back, in a precision that it can be computed in."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ..errors import Refused


@torch.no_grad()
def encode_pictures(base: Any, pixels: Tensor) -> Tensor:
    """See `Base.encode_pictures`.

    Raises:
        Refused: no pictures of a size that there are latents for, values beyond [0, 1], or latents that are no numbers.
    """
    factor = base.downsampling
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.shape[2] % factor or pixels.shape[3] % factor:
        shape = tuple(pixels.shape)
        raise Refused(f"expected pixels (N, 3, H, W) with sides that {factor} divides, got {shape}; crop them")
    low, high = pixels.aminmax()
    if not (low >= 0 and high <= 1):
        raise Refused(f"expected pixels in [0, 1], got {float(low):.3g} to {float(high):.3g}; rescale them")
    with base.awake(), precise(base) as dtype:
        encoded = base.vae.encode((2 * pixels.float() - 1).to(base.device, dtype))  # autoencoders see [-1, 1]
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
    if not latents.isfinite().all():
        raise Refused(
            f"the autoencoder of {base.name!r} gives latents that are no numbers in {dtype}; load the base in bfloat16 "
            "or float32 (train.mixed_precision=bf16)"
        )
    return (latents.float() - (base.vae.config.get("shift_factor") or 0.0)) * base.vae.config.scaling_factor


@torch.no_grad()
def decode_latents(base: Any, latents: Tensor) -> Tensor:
    """See `Base.decode_latents`."""
    latents = latents / base.vae.config.scaling_factor + (base.vae.config.get("shift_factor") or 0.0)
    with base.awake(), precise(base) as dtype:
        return (base.vae.decode(latents.to(base.device, dtype)).sample.float() / 2 + 0.5).clamp(0, 1)


def overflows(base: Any) -> bool:
    """Whether the autoencoder must not compute in the base's own precision."""
    return base.upcasts and base.dtype == torch.float16 and bool(base.vae.config.get("force_upcast"))


@contextmanager
def precise(base: Any, *, autocast: bool = False) -> Iterator[torch.dtype]:
    """Within the block the autoencoder is in this dtype, the base's own where it can be.

    Args:
        base: whose autoencoder it is.
        autocast: leave autocast on, which would cast back what the block computes.
    """
    own = base.dtype
    if not overflows(base):
        yield own
        return
    base.vae.to(torch.float32)
    try:
        with nullcontext() if autocast else torch.autocast(base.device.type, enabled=False):
            yield torch.float32
    finally:
        base.vae.to(own)
