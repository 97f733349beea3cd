"""Landmark error: the distance of an object's landmarks from where they were wanted."""

import torch
from torch import Tensor

from ..errors import Refused


def landmark_error(wanted: Tensor, found: Tensor) -> dict[str, Tensor]:
    """Mean distance of the landmarks found, and the share found, per picture.

    The landmark consistency of Qiu et al., OFT (2023), section 5.2: the l2 distance in pixels of the picture's own
    size. As there, undetected landmarks are left out of the mean; unlike there, the share detected is reported beside
    it, since a model that draws nothing has no error.

    Args:
        wanted, found: (N, ..., 2), x and y of the same points in pixels; NaN for a missing point.

    Returns:
        "error" (N,) in pixels, >= 0, NaN if no wanted point was found; "detected" (N,) in [0, 1], the
        share of the wanted points found, NaN if none is wanted. Points that were found but not wanted do not count.

    Raises:
        Refused: shapes that differ.
    """
    if wanted.shape != found.shape or wanted.ndim < 2 or wanted.shape[-1] != 2:
        shapes = f"{tuple(wanted.shape)} and {tuple(found.shape)}"
        raise Refused(f"landmark_error: expected points (N, ..., 2) twice, got {shapes}")
    distance = (wanted.double() - found.double()).norm(dim=-1).reshape(len(wanted), -1)  # (N, points)
    present = ~wanted.isnan().any(-1).reshape(len(wanted), -1)  # (N, points) bool
    both = ~distance.isnan()
    return {
        "error": distance.nan_to_num(0).sum(1) / torch.where(both.any(1), both.sum(1), torch.nan),
        "detected": both.sum(1) / torch.where(present.any(1), present.sum(1).double(), torch.nan),
    }
