"""The learned variance's loss against torch's own KL of normal distributions."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from diffadapt.errors import Refused
from diffadapt.objectives.variational_bound import variational_bound

ALPHAS = (1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)).cumprod(0)
STEPS = torch.tensor([1, 10, 300, 999])


def case():
    torch.manual_seed(0)
    latents, noise, guess, variance = (torch.randn(4, 2, 3, 3) for _ in range(4))
    a = ALPHAS[STEPS].float()[:, None, None, None]
    return latents, a.sqrt() * latents + (1 - a).sqrt() * noise, noise, guess, variance.tanh()


def test_it_is_the_kl_between_the_posterior_and_the_predicted_step():
    latents, noisy, _, guess, variance = case()
    a, before = ALPHAS[STEPS][:, None, None, None], ALPHAS[STEPS - 1][:, None, None, None]
    beta = 1 - a / before
    tilde = beta * (1 - before) / (1 - a)

    def mean(x_0: torch.Tensor) -> torch.Tensor:
        return before.sqrt() * beta / (1 - a) * x_0 + (1 - beta).sqrt() * (1 - before) / (1 - a) * noisy

    predicted = (noisy - (1 - a).sqrt() * guess) / a.sqrt()
    v = (variance.double() + 1) / 2
    spread = (v * beta.log() + (1 - v) * tilde.log()).exp().sqrt()
    expected = kl_divergence(Normal(mean(latents.double()), tilde.sqrt()), Normal(mean(predicted), spread))
    found = variational_bound(ALPHAS, latents, noisy, STEPS, guess, variance)
    torch.testing.assert_close(found.double(), expected.mean((1, 2, 3)) / math.log(2), rtol=2e-3, atol=1e-5)


def test_the_right_noise_with_the_smaller_variance_costs_nothing():
    latents, noisy, noise, _, variance = case()
    found = variational_bound(ALPHAS, latents, noisy, STEPS, noise, torch.full_like(variance, -1))
    assert found.abs().max() < 1e-4


def test_it_trains_the_variance_and_never_the_mean():
    latents, noisy, _, guess, variance = case()
    guess.requires_grad_()
    variance.requires_grad_()
    variational_bound(ALPHAS, latents, noisy, STEPS, guess, variance).sum().backward()
    assert guess.grad is None and variance.grad is not None and variance.grad.abs().min() > 0


def test_it_is_finite_at_the_first_step_and_an_output_without_variance_is_refused():
    latents, noisy, _, guess, variance = case()
    assert variational_bound(ALPHAS, latents, noisy, torch.zeros(4).long(), guess, variance).isfinite().all()
    with pytest.raises(Refused, match="variance channels"):
        variational_bound(ALPHAS, latents, noisy, STEPS, guess, variance[:, :1])


def test_at_the_first_step_the_posteriors_variance_is_that_of_the_second():
    latents, noisy, _, guess, variance = case()
    first = torch.zeros(len(latents)).long()
    a, after = ALPHAS[0], ALPHAS[1]
    tilde = (1 - after / a) * (1 - a) / (1 - after)  # of t = 1; that of t = 0 is 0
    x_0 = (noisy - (1 - a).sqrt() * guess) / a.sqrt()
    log_variance = (variance + 1) / 2 * (1 - a).log() + (1 - variance) / 2 * tilde.log()
    ratio = log_variance - tilde.log()
    kl = (ratio - 1 + (-ratio).exp() + (x_0 - latents).square() / log_variance.exp()) / 2
    found = variational_bound(ALPHAS, latents, noisy, first, guess, variance)
    torch.testing.assert_close(found.double(), kl.double().mean((1, 2, 3)) / math.log(2), rtol=2e-3, atol=1e-5)
