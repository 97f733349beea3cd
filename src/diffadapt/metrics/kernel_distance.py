"""Distances between two sets of pictures by a kernel: MMD and KID, unbiased, fit for small sets."""

from typing import Literal

import torch
from torch import Tensor

from ..errors import Refused
from .rows import check_rows

Kernel = Literal["polynomial", "gaussian"]


def polynomial_kernel(x: Tensor, y: Tensor, *, degree: int = 3) -> Tensor:
    """k(x, y) = (x . y / D + 1)^degree, Binkowski et al. (2018), section 4. (N, D), (M, D) -> (N, M)."""
    return (x @ y.T / x.shape[1] + 1) ** degree


def gaussian_kernel(x: Tensor, y: Tensor, *, bandwidth: float) -> Tensor:
    """k(x, y) = exp(-|x - y|^2 / (2 bandwidth^2)). (N, D), (M, D) -> (N, M) in [0, 1]."""
    return torch.exp(-torch.cdist(x, y).square() / (2 * bandwidth**2))


def mmd_squared(
    x: Tensor, y: Tensor, *, kernel: Kernel = "polynomial", bandwidth: float | None = None, biased: bool = False
) -> float:
    """Estimate of the squared maximum mean discrepancy of two sets, unbiased unless asked otherwise.

    Gretton et al., A kernel two-sample test (2012), Lemma 6:

        MMD_u^2 = sum_{i != j} k(x_i, x_j) / (n (n - 1)) + sum_{i != j} k(y_i, y_j) / (m (m - 1)) - 2 mean k(x_i, y_j)

    Args:
        x: (N, D) features of one set, N >= 2.
        y: (M, D) features of the other, M >= 2.
        kernel: "polynomial" (degree 3, no bandwidth) or "gaussian".
        bandwidth: of the gaussian kernel, in feature units; None takes the median distance between all rows
            (Gretton et al., section 8).
        biased: the plain means over all pairs instead, a row with itself included (equation 5): never below 0, 0 for
            equal sets, and above 0 in expectation for equal distributions.

    Returns:
        A number whose expectation is 0 for equal distributions; it can be a little below 0.

    Raises:
        Refused: fewer than two rows, widths that differ, not finite, unknown kernel.
    """
    check_rows(2, x=x, y=y)
    if kernel not in ("polynomial", "gaussian"):
        raise Refused(f"unknown kernel {kernel!r}; expected 'polynomial' or 'gaussian'")
    x, y = x.cpu().double(), y.cpu().double()
    n, m = len(x), len(y)
    if kernel == "polynomial":
        xx, yy, xy = polynomial_kernel(x, x), polynomial_kernel(y, y), polynomial_kernel(x, y)
    else:
        if bandwidth is None:
            both = torch.cat([x, y])
            bandwidth = float(torch.pdist(both).median().clamp(min=1e-12))
        xx, yy, xy = (gaussian_kernel(a, b, bandwidth=bandwidth) for a, b in ((x, x), (y, y), (x, y)))
    if biased:
        return float(xx.mean() + yy.mean() - 2 * xy.mean())
    within_x = (xx.sum() - xx.trace()) / (n * (n - 1))
    within_y = (yy.sum() - yy.trace()) / (m * (m - 1))
    return float(within_x + within_y - 2 * xy.mean())


def kid(x: Tensor, y: Tensor, *, subset: int = 1000, subsets: int = 100, seed: int = 0) -> Tensor:
    """Kernel Inception Distance: `mmd_squared` with the cubic kernel on random subsets; the metric is the mean.

    Binkowski et al., Demystifying MMD GANs (2018), section 4. The paper's features are Inception's pool3; any
    encoder's do, and only figures of one encoder compare.

    Args:
        x: (N, D) features, N >= 2.
        y: (M, D) features, M >= 2.
        subset: rows drawn from each set without replacement, at most the smaller set.
        subsets: how many times; 1 when a subset is all of both sets.
        seed: of the drawing.

    Returns:
        (subsets,) estimates; often printed times 1000.

    Raises:
        Refused: as `mmd_squared`, or `subset` < 2 or `subsets` < 1.
    """
    check_rows(2, x=x, y=y)
    if subset < 2 or subsets < 1:
        raise Refused(f"kid: expected subset >= 2 and subsets >= 1, got {subset} and {subsets}")
    size = min(subset, len(x), len(y))
    if size == len(x) == len(y):
        return torch.tensor([mmd_squared(x, y)], dtype=torch.float64)
    draw = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        rows = [torch.randperm(len(z), generator=draw)[:size].to(z.device) for z in (x, y)]
        values.append(mmd_squared(x[rows[0]], y[rows[1]]))
    return torch.tensor(values, dtype=torch.float64)
