import itertools

import pytest
import torch

from diffadapt.errors import Refused
from diffadapt.noise_schedule import PARAMETRISATIONS, NoiseSchedule

T = 1000
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, T, dtype=torch.float64) ** 2  # Stable Diffusion's
COSINE = torch.cos(torch.linspace(0.01, 1.56, T, dtype=torch.float64)).square()
PATHS = {"scaled linear": (1 - BETAS).cumprod(0), "cosine": COSINE}


def case(prediction_type: str, alphas: torch.Tensor, first: int = 0):
    """A schedule, x_t, and the exact prediction at every training step from `first` on, in float64."""
    schedule = NoiseSchedule(alphas_cumprod=alphas, prediction_type=prediction_type)
    generator = torch.Generator().manual_seed(0)
    timesteps = torch.arange(first, T)
    latents, noise = torch.randn(2, len(timesteps), 2, 3, 3, dtype=torch.float64, generator=generator)
    noisy = schedule.add_noise(latents, noise, timesteps)
    return schedule, timesteps, latents, noise, noisy, schedule.target(latents, noise, timesteps)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(["epsilon", "v_prediction", "sample"], 2)))
def test_converting_there_and_back_gives_the_prediction_back_at_every_level(one, other, path):
    schedule, timesteps, *_, noisy, prediction = case(one, PATHS[path])
    back = NoiseSchedule(alphas_cumprod=PATHS[path], prediction_type=other)
    there = schedule.convert(prediction, noisy, timesteps, to=other)
    again = back.convert(there, noisy, timesteps, to=one)
    torch.testing.assert_close(again, prediction, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("other", ["epsilon", "v_prediction", "sample"])
def test_converting_from_flow_and_back_gives_the_prediction_back_at_every_level_with_noise(other):
    schedule, timesteps, *_, noisy, prediction = case("flow", COSINE, first=1)  # at 0 there is no noise to tell
    levels = schedule.levels(timesteps, noisy)
    there = schedule.convert(prediction, noisy, timesteps, to=other)
    sample = PARAMETRISATIONS[other].sample(there, noisy, *levels)
    noise = PARAMETRISATIONS[other].noise(there, noisy, *levels)
    torch.testing.assert_close(noise - sample, prediction, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", PARAMETRISATIONS)
def test_an_exact_prediction_gives_data_and_noise_back_at_every_level(name, path):
    schedule, timesteps, latents, noise, noisy, prediction = case(name, PATHS[path], first=1)
    levels = schedule.levels(timesteps, noisy)
    torch.testing.assert_close(schedule.sample(prediction, noisy, timesteps), latents, atol=1e-6, rtol=1e-6)
    found = schedule.parametrisation.noise(prediction, noisy, *levels)
    torch.testing.assert_close(found, noise, atol=1e-6, rtol=1e-6)


def test_the_conversions_are_the_published_ones_at_one_level_by_hand():
    """a = 0.36: alpha = 0.6, sigma = 0.8; x_0 = 1, e = 2: x_t = 2.2, v = 0.6 * 2 - 0.8 * 1 = 0.4, flow = 1."""
    schedule = NoiseSchedule(alphas_cumprod=torch.tensor([0.36], dtype=torch.float64), prediction_type="epsilon")
    ones, zero = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.tensor([0])
    noisy = schedule.add_noise(ones, 2 * ones, zero)
    values = {to: float(schedule.convert(2 * ones, noisy, zero, to=to)) for to in PARAMETRISATIONS}
    assert values == pytest.approx({"epsilon": 2.0, "v_prediction": 0.4, "sample": 1.0, "flow": 1.0}, abs=1e-12)


@pytest.mark.parametrize("name", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weights_are_the_same_weight_of_the_sample_in_each_parametrisation(name):
    """|p - p'|^2 = factor |x_0 - x_0'|^2 at the same x_t; weight times factor is min(SNR, gamma) for all."""
    schedule, timesteps, latents, _, noisy, prediction = case(name, COSINE)
    alpha, sigma = schedule.levels(timesteps, noisy)
    guess = latents + 1
    off = PARAMETRISATIONS[name].target(guess, (noisy - alpha * guess) / sigma, alpha, sigma)
    factor = (off - prediction).square().mean((1, 2, 3))
    snr = COSINE / (1 - COSINE)
    torch.testing.assert_close(
        schedule.weight(timesteps, 5.0).double() * factor, snr.clamp(max=5), rtol=1e-4, atol=1e-7
    )


def test_noise_ratio_is_sigma_over_alpha_and_grows():
    for name in PARAMETRISATIONS:
        schedule, timesteps, *_, noisy, _ = case(name, COSINE)
        alpha, sigma = schedule.levels(timesteps, noisy)
        torch.testing.assert_close(schedule.noise_ratio(), (sigma / alpha).flatten())
        assert schedule.noise_ratio().diff().min() > 0


def test_an_unknown_prediction_type_is_refused_with_those_that_exist():
    with pytest.raises(Refused, match="'x'; expected epsilon, v_prediction, sample, flow"):
        NoiseSchedule(alphas_cumprod=COSINE, prediction_type="x")
    schedule, timesteps, *_, noisy, prediction = case("epsilon", COSINE)
    with pytest.raises(Refused, match="'x'"):
        schedule.convert(prediction, noisy, timesteps, to="x")
