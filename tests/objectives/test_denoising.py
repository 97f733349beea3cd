import pytest
import torch

from diffadapt.conditioning import Conditioning
from diffadapt.errors import Refused
from diffadapt.objectives import Batch, Masked, NoiseSchedule

T = 1000
ALPHAS = torch.cos(torch.linspace(0.01, 1.56, T)).square()


def case(prediction_type: str):
    torch.manual_seed(0)
    schedule = NoiseSchedule(alphas_cumprod=ALPHAS, prediction_type=prediction_type)
    return schedule, torch.randn(6, 4, 5, 5), torch.randn(6, 4, 5, 5), torch.tensor([0, 1, 200, 500, 900, 999])


def losses_of(model, schedule, latents, noise, timesteps, *, snr_gamma=0.0, mask=None):
    """The losses of rows that have no text."""
    batch = Batch(latents, noise, timesteps, Conditioning(), ("target",) * len(latents), mask=mask)
    return Masked(schedule, snr_gamma=snr_gamma).losses(model, batch)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "flow"])
def test_a_denoiser_that_knows_the_answer_has_no_loss(prediction_type):
    schedule, latents, noise, timesteps = case(prediction_type)
    answer = schedule.target(latents, noise, timesteps)
    loss = losses_of(lambda *_: answer, schedule, latents, noise, timesteps, snr_gamma=5)
    assert torch.equal(loss, torch.zeros(6))


def test_noise_keeps_unit_variance_and_follows_the_schedule():
    """x_t = sqrt(a) x_0 + sqrt(1 - a) e; with x_0 = 0 what is left is sqrt(1 - a) e."""
    schedule, latents, noise, timesteps = case("epsilon")
    noisy = schedule.add_noise(torch.zeros_like(latents), noise, timesteps)
    expected = (1 - ALPHAS[timesteps]).sqrt()[:, None, None, None] * noise
    torch.testing.assert_close(noisy, expected)


def test_v_target_gives_back_the_data():
    """x_0 = sqrt(a) x_t - sqrt(1 - a) v."""
    schedule, latents, noise, timesteps = case("v_prediction")
    a = ALPHAS[timesteps][:, None, None, None]
    v = schedule.target(latents, noise, timesteps)
    back = a.sqrt() * schedule.add_noise(latents, noise, timesteps) - (1 - a).sqrt() * v
    torch.testing.assert_close(back, latents, atol=1e-5, rtol=1e-5)


def test_flow_moves_straight_from_data_to_noise():
    schedule, latents, noise, _ = case("flow")
    zero = schedule.add_noise(latents, noise, torch.zeros(6, dtype=torch.long))
    assert torch.equal(zero, latents)
    half = schedule.add_noise(latents, noise, torch.full((6,), T // 2))
    torch.testing.assert_close(half, (latents + noise) / 2)


@pytest.mark.parametrize(("prediction_type", "extra"), [("epsilon", 0), ("v_prediction", 1)])
def test_min_snr_weights_equal_the_closed_form(prediction_type, extra):
    schedule, *_, timesteps = case(prediction_type)
    snr = ALPHAS[timesteps].double() / (1 - ALPHAS[timesteps].double())
    expected = torch.minimum(snr, torch.tensor(5.0, dtype=torch.float64)) / (snr + extra)
    torch.testing.assert_close(schedule.weight(timesteps, 5.0), expected.float())
    assert torch.equal(schedule.weight(timesteps, 0), torch.ones(6))


def test_epsilon_and_v_losses_agree_after_snr_conversion():
    """|v - v'|^2 = |e - e'|^2 (SNR + 1) / SNR for the same prediction of x_0: one loss, two weightings."""
    epsilon, latents, noise, _ = case("epsilon")
    v = NoiseSchedule(alphas_cumprod=ALPHAS, prediction_type="v_prediction")
    timesteps = torch.tensor([100, 200, 300, 500, 700, 800])
    a = ALPHAS[timesteps][:, None, None, None]
    noisy, guess = v.add_noise(latents, noise, timesteps), torch.randn_like(latents)
    e_guess = (noisy - a.sqrt() * guess) / (1 - a).sqrt()
    v_guess = a.sqrt() * e_guess - (1 - a).sqrt() * guess
    rest = (noise, timesteps)
    e_loss = losses_of(lambda *_: e_guess, epsilon, latents, *rest, snr_gamma=5)
    v_loss = losses_of(lambda *_: v_guess, v, latents, *rest, snr_gamma=5)
    torch.testing.assert_close(e_loss, v_loss, rtol=1e-3, atol=1e-5)


def test_a_mask_of_any_constant_changes_nothing():
    schedule, latents, noise, timesteps = case("epsilon")
    plain = losses_of(lambda x, *_: x, schedule, latents, noise, timesteps)
    for value in (0.2, 1.0, 7.0):
        mask = torch.full((6, 1, 5, 5), value)
        masked = losses_of(lambda x, *_: x, schedule, latents, noise, timesteps, mask=mask)
        torch.testing.assert_close(masked, plain)


def test_places_outside_the_mask_do_not_count():
    schedule, latents, noise, timesteps = case("epsilon")
    mask = torch.zeros(6, 1, 5, 5)
    mask[..., :2, :] = 1
    right_inside = noise.clone()
    right_inside[..., 2:, :] += 10
    loss = losses_of(lambda *_: right_inside, schedule, latents, noise, timesteps, mask=mask)
    assert torch.equal(loss, torch.zeros(6))


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(Refused, match="epsilon, v_prediction, sample, flow"):
        NoiseSchedule(alphas_cumprod=ALPHAS, prediction_type="x")
