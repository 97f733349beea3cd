"""The Cayley-Neumann series (Qiu et al. 2025, arXiv:2506.19847v2): what other tools compute in place of the inverse.

    R_k = (I + Q)(I + Q + .. + Q^(k-1)) = R (I - Q^k)

It is here to say how far a file that was trained with it is from the exact transform that diffadapt reads it into;
nothing else uses it. A plane that R turns by 2 atan(theta), R_k turns by the same angle when k is 4, and shrinks it to
1 - theta^4 of its size: R is then the nearest orthogonal matrix as long as theta < 1.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from ..adapters.oft import OFTAdapter, skew

ORTHOGONALITY_BOUND = 0.01  # an entry of R_k^T R_k - I above this is visible in pictures


def series(q: Tensor, terms: int) -> Tensor:
    """R_k of skew matrices (N, b, b), with PEFT's count of terms: k = terms - 1, and 3 for 3 terms too."""
    identity = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    if terms < 3:
        return identity + (2 * q if terms == 2 else 0 * q)
    total = identity.expand_as(q)
    for _ in range(max(terms - 1, 3) - 1):
        total = identity + q @ total
    return total + q @ total


@torch.no_grad()
def describe(adapters: Iterable[OFTAdapter], terms: int) -> str:
    """How the exact rotations of these adapters differ from the series that the file was made for, in one sentence."""
    apart, leaves = 0.0, 0.0
    for adapter in adapters:
        exact, approximate = adapter.rotations(), series(skew(adapter.q, adapter.block_size), terms)
        identity = torch.eye(adapter.block_size, device=exact.device)
        apart = max(apart, float((approximate - exact).abs().max()))
        leaves = max(leaves, float((approximate.mT @ approximate - identity).abs().max()))
    text = (
        f"made for the Cayley-Neumann series of {terms} terms and read into the exact transform of the same Q: an "
        f"entry of R differs by at most {apart:.2g}"
    )
    if leaves > ORTHOGONALITY_BOUND:
        text += (
            f"; the series has left the orthogonal group (max |R^T R - I| = {leaves:.2g}, above {ORTHOGONALITY_BOUND}),"
            " so that pictures will differ from those of the tool that made it"
        )
    return text
