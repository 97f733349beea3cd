"""Frechet distance between two sets of pictures, each seen as one Gaussian in feature space (FID)."""

import torch
from torch import Tensor

from ..errors import Refused
from .rows import check_rows


def gaussian_of(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) of features (N, D), N >= 2, in float64."""
    check_rows(2, features=features)
    rows = features.cpu().double()
    mean = rows.mean(0)
    return mean, (rows - mean).T @ (rows - mean) / (len(rows) - 1)


def frechet_distance(mean_x: Tensor, covariance_x: Tensor, mean_y: Tensor, covariance_y: Tensor) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians, Heusel et al. (2017), eq. 6.

        |m_x - m_y|^2 + Tr(C_x + C_y - 2 (C_x C_y)^(1/2))

    The trace of the root comes from the eigenvalues of C_x^(1/2) C_y C_x^(1/2), which is symmetric and has the same
    ones as C_x C_y: no complex numbers, no small constant on the diagonal (deviation from the reference code, which
    takes scipy's sqrtm of the product and drops imaginary parts).

    Args:
        mean_x, mean_y: (D,).
        covariance_x, covariance_y: (D, D), symmetric and positive semi-definite.

    Returns:
        >= 0, in squared feature units.

    Raises:
        Refused: shapes that do not fit each other.
    """
    d = len(mean_x)
    if mean_y.shape != (d,) or covariance_x.shape != (d, d) or covariance_y.shape != (d, d):
        shapes = [tuple(t.shape) for t in (mean_x, covariance_x, mean_y, covariance_y)]
        raise Refused(f"frechet_distance: expected (D,), (D, D), (D,), (D, D), got {shapes}")
    m_x, c_x, m_y, c_y = (t.double() for t in (mean_x, covariance_x, mean_y, covariance_y))
    values, vectors = torch.linalg.eigh(c_x)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    shared = torch.linalg.eigvalsh(root @ c_y @ root).clamp(min=0).sqrt().sum()
    distance = (m_x - m_y).square().sum() + c_x.trace() + c_y.trace() - 2 * shared
    return float(distance.clamp(min=0))


def fid(x: Tensor, y: Tensor) -> float:
    """Frechet distance between the Gaussians of two sets of features.

    Biased upwards for few pictures (the bias depends on the model), so compare only equal counts, and prefer `kid`
    below some 10,000 pictures. FID proper uses Inception's pool3 features.

    Args:
        x: (N, D) features of one set, N >= 2.
        y: (M, D) features of the other, M >= 2.

    Returns:
        >= 0; 0 for a set with itself.

    Raises:
        Refused: fewer than two rows, widths that differ, or not finite.
    """
    check_rows(2, x=x, y=y)
    return frechet_distance(*gaussian_of(x), *gaussian_of(y))
