"""The optimal denoiser of a finite data set, in closed form.

For a data set D = {x_1, ..., x_n} the denoiser with the least error is the posterior mean

    F*(x_t) = sum_i w_i x_i,   w_i ~ N(x_t; sqrt(a) x_i, (1 - a) I),   a = alpha_cumprod

(Zhong et al. 2024, arXiv:2406.00773, theorem 1). Near the data (a -> 1) it is the nearest point, near pure noise
(a -> 0) the mean of the set. No network and no training stands behind these figures: they are what a perfectly
trained base would do.
"""

import torch
from torch import Tensor

from ..errors import Refused


def posterior_mean(noisy: Tensor, points: Tensor, alpha_cumprod: float) -> Tensor:
    """The ideal denoiser's prediction of x_0.

    Args:
        noisy: (N, D) rows x_t = sqrt(a) x_0 + sqrt(1 - a) e.
        points: (n, D) the set. Near the data distances are divided by 1 - a: use float64.
        alpha_cumprod: a, share of signal power, in (0, 1).

    Returns:
        (N, D) the posterior mean of x_0

    Raises:
        Refused: an empty set, widths that differ, or a share out of range.
    """
    if noisy.ndim != 2 or points.ndim != 2 or noisy.shape[1] != points.shape[1] or not len(points):
        raise Refused(f"expected rows (N, D) and points (n, D), got {tuple(noisy.shape)} and {tuple(points.shape)}")
    if not 0 < alpha_cumprod < 1:
        raise Refused(f"alpha_cumprod must lie between 0 and 1, got {alpha_cumprod}")
    signal = alpha_cumprod**0.5
    # ||x_t - s x_i||^2 without the term that all points share: s^2 ||x_i||^2 - 2 s x_t . x_i
    distance = alpha_cumprod * points.square().sum(1) - 2 * signal * noisy @ points.T  # (N, n)
    return torch.softmax(distance / (-2 * (1 - alpha_cumprod)), dim=1) @ points
