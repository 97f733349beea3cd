"""Drift: what changed on prompts that have nothing to do with the concept.

Both functions compare the adapted model's picture with the untouched base's picture of the *same prompt and seed*, on
prompts that do not hold the concept. 0 means that nothing was forgotten. The pairing by seed is ours; the question is
the language drift of Ruiz et al., DreamBooth (2023), section 3.3, which measures it by prior preservation (PRES).
"""

from torch import Tensor

from ..errors import Refused
from .rows import check_paired, unit


def drift_features(adapted: Tensor, base: Tensor) -> Tensor:
    """Cosine distance (1 - cosine) between paired features; the metric is the mean of the result.

    Args:
        adapted: (N, D) features of the adapted model's pictures.
        base: (N, D) features of the base's pictures, same prompts, seeds and encoder.

    Returns:
        (N,) in [0, 2]; 0 is unchanged.

    Raises:
        Refused: not paired rows of one width, empty, or not finite.
    """
    check_paired(adapted=adapted, base=base)
    # |a - b|^2 / 2 is 1 - cos for unit rows, and exactly 0 for equal ones.
    return (unit(adapted) - unit(base)).square().sum(1) / 2


def drift_pixels(adapted: Tensor, base: Tensor) -> Tensor:
    """Root mean square difference of paired pictures; the metric is the mean of the result.

    Args:
        adapted: (N, C, H, W) pixels in [0, 1].
        base: the same shape.

    Returns:
        (N,) in [0, 1]; 0 is unchanged, one 8-bit grey level is 0.0039.

    Raises:
        Refused: the shapes differ or there are no pictures.
    """
    if adapted.shape != base.shape or adapted.ndim != 4 or len(adapted) == 0:
        raise Refused(
            f"drift_pixels: expected two equal shapes (N, C, H, W), got {tuple(adapted.shape)} and {tuple(base.shape)}"
        )
    return (adapted.float() - base.float()).square().mean((1, 2, 3)).sqrt()
