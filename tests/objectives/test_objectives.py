"""Objectives by hand: what they draw, the loss of each row, what is minimised."""

import numpy as np
import pytest
import torch

from diffadapt.conditioning import Conditioning
from diffadapt.objectives import Batch, Denoising, Draw, Masked, NoiseSchedule, PriorPreservation
from diffadapt.objectives.objective import spread_timesteps

SCHEDULE = NoiseSchedule(alphas_cumprod=torch.tensor([0.64, 0.36]), prediction_type="epsilon")


def batch(sources=("target", "class"), mask=None) -> Batch:
    """Rows of two places. At t = 0 pictures of 1 and noise of 2 mix to 2, at t = 1 pictures of 2 and noise of 1 too."""
    latents, noise = (torch.tensor(each).view(2, 1, 1, 1).expand(2, 1, 1, 2) for each in ([1.0, 2.0], [2.0, 1.0]))
    return Batch(latents, noise, torch.tensor([0, 1]), Conditioning(), sources, mask=mask)


def half(noisy, timesteps, condition):
    """Predicts 1 on the left and 2 on the right: off by 1 and 0 in the first row, by 0 and 1 in the second."""
    return noisy * torch.tensor([0.5, 1.0])


def test_denoising_is_the_squared_error_averaged_over_places():
    assert Denoising(SCHEDULE).losses(half, batch()).tolist() == pytest.approx([0.5, 0.5])


def test_min_snr_weighs_each_row_by_its_noise_level():
    """SNR 16/9 and 9/16; gamma 1 weighs by min(SNR, 1) / SNR."""
    losses = Denoising(SCHEDULE, snr_gamma=1.0).losses(half, batch())
    assert losses.tolist() == pytest.approx([0.5 * 9 / 16, 0.5])


def test_a_mask_counts_its_places_as_shares_of_its_mean():
    mask = torch.tensor([[0.5, 0.0], [0.1, 0.3]]).view(2, 1, 1, 2)  # means 0.25 and 0.2
    assert Masked(SCHEDULE).losses(half, batch(mask=mask)).tolist() == pytest.approx([1.0, 0.75])
    assert Denoising(SCHEDULE).losses(half, batch(mask=mask)).tolist() == pytest.approx([0.5, 0.5])
    assert Masked(SCHEDULE).losses(half, batch()).tolist() == pytest.approx([0.5, 0.5])


def test_min_snr_and_mask_go_together():
    mask = torch.tensor([[0.5, 0.0], [0.1, 0.3]]).view(2, 1, 1, 2)
    losses = Masked(SCHEDULE, snr_gamma=1.0).losses(half, batch(mask=mask))
    assert losses.tolist() == pytest.approx([9 / 16, 0.75])


def test_denoising_minimises_the_mean_of_its_rows():
    assert Denoising(SCHEDULE).reduce(torch.tensor([1.0, 4.0]), batch()) == pytest.approx(2.5)


@pytest.mark.parametrize(("weight", "expected"), [(1.0, 5.0), (0.5, 3.0), (3.0, 13.0)])
def test_prior_preservation_adds_the_weighted_mean_of_the_class(weight, expected):
    objective = PriorPreservation(Denoising(SCHEDULE), weight=weight)
    assert objective.reduce(torch.tensor([1.0, 4.0]), batch()) == pytest.approx(expected)
    assert objective.reduce(torch.tensor([4.0, 1.0]), batch(("class", "target"))) == pytest.approx(expected)


def test_without_a_weight_the_class_counts_as_much_as_the_target():
    objective = PriorPreservation(Denoising(SCHEDULE))
    assert objective.sources == ("target", "class") and objective.reduce(torch.tensor([1.0, 4.0]), batch()) == 5.0


def test_prior_preservation_has_the_losses_of_what_it_stands_on():
    mask = torch.tensor([[0.5, 0.0], [1.0, 1.0]]).view(2, 1, 1, 2)
    objective = PriorPreservation(Masked(SCHEDULE, snr_gamma=1.0))
    assert objective.losses(half, batch(mask=mask)).tolist() == pytest.approx([9 / 16, 0.5])


def test_target_and_class_rows_are_each_spread_over_all_noise_levels():
    schedule = NoiseSchedule(alphas_cumprod=torch.linspace(0.99, 0.01, 1000), prediction_type="epsilon")
    objective = PriorPreservation(Denoising(schedule))
    draw = objective.draw(np.random.default_rng(0), 4)
    assert objective.rows(4) == 8 and draw.sources == ("target",) * 4 + ("class",) * 4 and draw.weights is None
    for rows in (draw.timesteps[:4], draw.timesteps[4:]):
        assert sorted(int(t) // 250 for t in rows) == [0, 1, 2, 3]
    assert Denoising(schedule).rows(4) == 4
    assert Denoising(schedule).draw(np.random.default_rng(0), 4).sources == ("target",) * 4


def test_timesteps_stay_below_the_length_in_any_number():
    drawn = torch.cat([spread_timesteps(np.random.default_rng(i), 3, 5) for i in range(400)])
    assert drawn.dtype == torch.int64 and drawn.min() == 0 and drawn.max() == 4
    assert torch.bincount(drawn).tolist() == pytest.approx([240] * 5, rel=0.15)


def test_a_batch_knows_its_rows_by_their_source():
    rows = batch(("class", "target"))
    assert rows.of("target").tolist() == [False, True] and rows.of("memory").tolist() == [False, False]


def test_a_draw_may_weigh_rows():
    draw = Draw(torch.tensor([0, 1]), ("target", "memory"), weights=torch.tensor([0.25, 0.75]))
    assert draw.weights is not None and draw.weights.sum() == 1


def test_timesteps_stand_anywhere_in_their_shares_each_on_its_own():
    places = spread_timesteps(np.random.default_rng(0), 8, 8_000_000) % 1_000_000
    assert len(set((places // 1000).tolist())) == 8


def test_the_model_is_asked_at_the_rows_noise_levels_under_their_condition():
    rows, asked = batch(), []

    def model(noisy, timesteps, condition):
        asked.append((timesteps, condition))
        return noisy

    Denoising(SCHEDULE).losses(model, rows)
    ((timesteps, condition),) = asked
    assert timesteps is rows.timesteps and condition is rows.condition
