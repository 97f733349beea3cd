"""Several concepts of Perfusion in one prompt: what of a token's encoding each of them takes out (equation 4).

With the anchors i*_j of the concepts and <x, y> = x^T C^-1 y, e loses its C^-1-orthogonal projection on all of them.
"""

import warnings
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..errors import Refused

LIKE, SAME = 0.9, 0.999  # cosine of two anchors from which a warning is due, and from which they cannot be told apart


class Anchored(Protocol):
    """A concept: its word, its anchor i* (D,), and C^-1 i* (D,)."""

    word: str
    anchor: Tensor

    def direction(self) -> Tensor: ...


def shares(text: Tensor, company: Sequence[Anchored], edited: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """How much of the first concept's anchor each token (N, L) loses, and its similarity to it.

    The first is r itself for one concept alone. Beside others it is the anchor's coefficient in the projection of e on
    all anchors whose concept edits that place: the solution of Gram @ coefficients = similarities.
    """
    anchors = torch.stack([each.anchor for each in company])
    directions = torch.stack([each.direction() for each in company])
    similar, gram = text @ directions.T, anchors @ directions.T  # (N, L, J), (J, J)
    r = similar[..., 0] / gram[0, 0]
    if len(company) == 1:
        return r * edited[0], r
    _refuse_twins(company, gram)
    positions = torch.stack(list(edited), -1)  # (N, L, J)
    pairs = positions[..., :, None] & positions[..., None, :]
    eye = torch.eye(len(company), device=gram.device, dtype=gram.dtype)
    solved = torch.linalg.solve(torch.where(pairs, (gram + gram.T) / 2, eye), similar * positions)
    return solved[..., 0], r


def _refuse_twins(company: Sequence[Anchored], gram: Tensor) -> None:
    sizes = gram.diagonal().sqrt()
    cosine = (gram / (sizes[:, None] * sizes)).tolist()
    for i, first in enumerate(company):
        for j, second in enumerate(company[:i]):
            likeness = abs(cosine[i][j])
            words = f"{second.word} and {first.word}"
            if likeness > SAME:
                raise Refused(f"the anchors of {words} are the same (cosine {likeness:.4f}); use one of them at a time")
            if likeness > LIKE:
                warnings.warn(
                    f"the anchors of {words} are much alike (cosine {likeness:.2f}); they may mix", stacklevel=2
                )
