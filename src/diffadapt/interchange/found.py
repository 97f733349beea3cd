"""OFT as another tool's file holds it, in our convention, and the adapter made of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ..adapters import OFT, Attachment, attach
from ..adapters.oft import OFTAdapter
from ..errors import Refused
from ..network import Network
from .series import describe


@dataclass
class Found:
    """An adapter of another tool, as a reader returns it.

    Attributes:
        source: what the file is, for people.
        q: layer path -> strict upper triangles of the canonical Q, (r, b(b-1)/2), or (1, b(b-1)/2) when shared.
        gains: layer path -> log of the gain of each neuron (out,).
        settings: more of `OFT`'s settings.
        by_blocks: whether the file's maker chose the number of blocks rather than their size.
        terms: of the Cayley-Neumann series it was trained with; None for the exact transform.
        remarks: what else people should know.
        hint: parameters of a control signal's encoder, as `HintAdapter` names them.
    """

    source: str
    q: dict[str, Tensor] = field(default_factory=dict)
    gains: dict[str, Tensor] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    by_blocks: bool = False
    terms: int | None = None
    remarks: list[str] = field(default_factory=list)
    hint: dict[str, Tensor] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        return len(self.q)

    def describe(self, attachment: Attachment) -> list[str]:
        """How far what the file was trained with is from the exact transform."""
        if self.terms is None:
            return []
        ours = [attachment.adapters[path] for path in self.q]
        return [describe((each for each in ours if isinstance(each, OFTAdapter)), self.terms)]

    def attach(self, base: Network) -> Attachment:
        """The adapter on its base. Layers of its roles that the file leaves out keep Q = 0, the identity.

        Raises:
            Refused: the shapes do not fit the base, or the layers' blocks are neither of one size nor of one number.
        """
        roles = [role for role, paths in base.roles.items() if not self.q.keys().isdisjoint(paths)]
        rescale = "joint" if self.gains else "none"
        method = OFT(**{**self._blocks(base), "rescale": rescale, **self.settings})
        attachment = attach(base, method, roles)
        values = {f"{path}.q": q for path, q in self.q.items()}
        values |= {f"{path}.log_gain": gain for path, gain in self.gains.items()}
        try:
            attachment.load_state_dict({**attachment.state_dict(), **values})
        except Refused as error:
            attachment.detach()
            raise Refused(f"{self.source} does not fit base {base.name!r}: {error}") from error
        attachment.project_()  # other tools bound Q while they compute, so that what they save may lie outside
        return attachment

    def _blocks(self, base: Network) -> dict[str, Any]:
        """The settings that say how the layers are divided."""
        sizes = {path: _side(q, path) for path, q in self.q.items()}
        numbers = {path: _inputs(base.module(path)) // size for path, size in sizes.items()}
        shared = any(len(q) < numbers[path] for path, q in self.q.items())
        divisions: list[tuple[str, Mapping[str, int]]] = [("block_size", sizes), ("blocks", numbers)]
        for name, values in reversed(divisions) if self.by_blocks else divisions:
            if len(set(values.values())) == 1:
                return {name: next(iter(values.values())), "share_blocks": shared}
        raise Refused(
            f"{self.source} has blocks of the sizes {', '.join(map(str, sorted(set(sizes.values()))))} in one adapter; "
            "an adapter of diffadapt has blocks of one size, or one number of blocks in each layer"
        )


def _side(q: Tensor, path: str) -> int:
    """b of strict upper triangles (r, b(b-1)/2)."""
    size = (1 + math.isqrt(1 + 8 * q.shape[-1])) // 2 if q.ndim == 2 else 0
    if size < 2 or size * (size - 1) // 2 != q.shape[-1]:
        raise Refused(f"{path}: a tensor of shape {tuple(q.shape)} holds no rotations (expected (r, b(b-1)/2))")
    return size


def _inputs(layer: nn.Module) -> int:
    """Inputs of each neuron of a linear or convolution layer."""
    return math.prod(layer.get_parameter("weight").shape[1:])
