"""Cached keys and values of a prompt, computed once per generation: its text is the same at every denoising step."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ..bases import Base

ROLES = ("cross_attention.key", "cross_attention.value")


class CachedProjection(nn.Module):
    """A projection that caches its output for the last input, compared by identity.

    Args:
        layer: the projection, with whatever is adapted on it.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self._last: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self._last is None or self._last[0] is not x:
            self._last = x, self.layer(x)
        return self._last[1]


@contextmanager
def cached_projections(base: Base) -> Iterator[None]:
    """Within the block the base's text projections cache their last output; use it for one generation.

    What is attached, its strengths and settings must not change inside it. Projections with an adapter that looks at
    the noise level are left as they are.
    """
    timed = {p for each in base.attachments for p, adapter in each.adapters.items() if "timesteps" in adapter.needs}
    paths = [path for role in ROLES for path in base.roles.get(role, ()) if path not in timed]
    layers = {path: base.module(path) for path in paths}
    for path, layer in layers.items():
        base.replace_(path, CachedProjection(layer))
    try:
        yield
    finally:
        for path, layer in layers.items():
            base.replace_(path, layer)
