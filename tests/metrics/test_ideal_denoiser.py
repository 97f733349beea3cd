"""The ideal denoiser of a finite set against its closed forms."""

import math

import pytest
import torch

from diffadapt.errors import Refused
from diffadapt.metrics.ideal_denoiser import posterior_mean


def points(count: int = 16, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_near_the_data_it_is_the_nearest_point():
    cloud, asked = points(), points(5, seed=1)
    nearest = cloud[torch.cdist(asked, cloud).argmin(1)]
    assert (posterior_mean(asked, cloud, 1 - 1e-8) - nearest).abs().max() < 1e-6


def test_near_the_data_a_tie_is_the_average_of_the_tied_points():
    pair = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 5.0]], dtype=torch.float64)
    assert posterior_mean(torch.zeros(1, 2, dtype=torch.float64), pair, 1 - 1e-8).abs().max() < 1e-6


def test_near_pure_noise_it_is_the_mean_of_the_set():
    cloud = points()
    assert (posterior_mean(points(5, seed=1), cloud, 1e-10) - cloud.mean(0)).abs().max() < 1e-4


@pytest.mark.parametrize("alpha", [0.05, 0.5, 0.95])
def test_for_two_points_it_is_the_hyperbolic_tangent(alpha: float):
    pair = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    noisy = torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None]
    expected = torch.tanh(math.sqrt(alpha) / (1 - alpha) * noisy)
    assert (posterior_mean(noisy, pair, alpha) - expected).abs().max() < 1e-12


def test_no_other_denoiser_of_the_set_has_a_smaller_error():
    generator, cloud, alpha = torch.Generator().manual_seed(0), points(4, 2), 0.4
    clean = cloud.repeat(5000, 1)
    noise = torch.randn(clean.shape, dtype=torch.float64, generator=generator)
    noisy = math.sqrt(alpha) * clean + math.sqrt(1 - alpha) * noise
    ideal = posterior_mean(noisy, cloud, alpha)
    best = (ideal - clean).square().mean()
    for other in (ideal - 0.1, ideal + 0.1, ideal * 0.9, ideal * 1.1):
        assert (other - clean).square().mean() > best


def test_what_cannot_be_denoised_is_refused():
    with pytest.raises(Refused, match="rows"):
        posterior_mean(torch.zeros(2, 3), torch.zeros(2, 4), 0.5)
    with pytest.raises(Refused, match="rows"):
        posterior_mean(torch.zeros(2, 3), torch.zeros(0, 3), 0.5)
    with pytest.raises(Refused, match="between 0 and 1, got 1"):
        posterior_mean(torch.zeros(2, 3), torch.zeros(2, 3), 1)
