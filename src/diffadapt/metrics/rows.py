"""Checks of features: finite rows of one width; and rows scaled to unit length."""

import torch.nn.functional as F
from torch import Tensor

from ..errors import Refused


def check_rows(minimum: int = 1, /, **features: Tensor) -> None:
    """Refuses features that are not (N, D) rows of one width D, finite, with N >= `minimum`.

    Args:
        minimum: the fewest rows each set must have.
        features: argument name -> features, (N, D).

    Raises:
        Refused: names the argument, what was expected and what it got.
    """
    widths = set()
    for name, rows in features.items():
        if rows.ndim != 2 or len(rows) < minimum:
            raise Refused(f"{name}: expected features (N, D) with N >= {minimum}, got {tuple(rows.shape)}")
        if not rows.isfinite().all():
            raise Refused(f"{name}: holds values that are not finite; look at the pictures it was computed from")
        widths.add(rows.shape[1])
    if len(widths) > 1:
        widths_by_name = ", ".join(f"{name} has {rows.shape[1]}" for name, rows in features.items())
        raise Refused(f"features of different encoders: {widths_by_name}; compute all with the same `load_features`")


def check_paired(**features: Tensor) -> None:
    """`check_rows`, and the same number of rows in every set."""
    check_rows(1, **features)
    if len({len(rows) for rows in features.values()}) > 1:
        counts = ", ".join(f"{name} has {len(rows)}" for name, rows in features.items())
        raise Refused(f"expected paired rows (same prompt, same seed), but {counts} rows")


def unit(features: Tensor) -> Tensor:
    """Rows (N, D) scaled to length 1, in float32 at least. A row of zeros stays zero."""
    return F.normalize(features if features.dtype.itemsize >= 4 else features.float(), dim=1)
