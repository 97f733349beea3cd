"""Prior preservation by hand: equation 2 of DreamBooth on four rows, and what is drawn for them."""

import numpy as np
import pytest
import torch

from diffadapt.objectives import Batch, Denoising, NoiseSchedule, PriorPreservation
from diffadapt.objectives.objective import spread_timesteps

SCHEDULE = NoiseSchedule(alphas_cumprod=torch.linspace(0.9, 0.1, 8), prediction_type="epsilon")


def objective(weight: float = 1.0) -> PriorPreservation:
    return PriorPreservation(Denoising(SCHEDULE), weight=weight)


def batch(errors: list[float], sources: tuple[str, ...]) -> Batch:
    """Rows on which a denoiser that says 0 is wrong by these numbers."""
    noise = torch.tensor(errors)[:, None, None, None]
    return Batch(torch.zeros_like(noise), noise, torch.zeros(len(errors), dtype=torch.long), torch.zeros(1), sources)


def test_the_loss_is_the_targets_mean_plus_the_weight_times_the_classs():
    """Squared errors 1 and 9 of the target, 4 and 16 of the class: 5 + 0.25 * 10."""
    rows = batch([1.0, 3.0, 2.0, 4.0], ("target", "target", "class", "class"))
    one = objective(0.25)
    losses = one.losses(lambda noisy, *_: torch.zeros_like(noisy), rows)
    assert losses.tolist() == [1.0, 9.0, 4.0, 16.0]
    assert one.reduce(losses, rows).item() == 7.5


def test_the_weight_is_1_when_none_is_given():
    rows = batch([1.0, 2.0], ("target", "class"))
    assert PriorPreservation(Denoising(SCHEDULE)).reduce(torch.tensor([1.0, 4.0]), rows).item() == 5.0


def test_as_many_class_pictures_follow_the_targets_each_half_over_all_noise_levels():
    one = objective()
    assert one.sources == ("target", "class") and one.rows(4) == 8
    draw = one.draw(np.random.default_rng(0), 4)
    assert draw.sources == ("target",) * 4 + ("class",) * 4 and draw.weights is None
    for half in (draw.timesteps[:4], draw.timesteps[4:]):
        assert sorted(t // 2 for t in half.tolist()) == [0, 1, 2, 3]  # 8 levels, 4 shares of 2
    assert not torch.equal(draw.timesteps[:4], draw.timesteps[4:])


def test_plain_denoising_takes_every_row_from_the_target():
    one = Denoising(SCHEDULE)
    draw = one.draw(np.random.default_rng(0), 4)
    assert one.sources == ("target",) and one.rows(4) == 4 and draw.sources == ("target",) * 4
    assert sorted(t // 2 for t in draw.timesteps.tolist()) == [0, 1, 2, 3]
    assert one.reduce(torch.tensor([1.0, 4.0]), batch([1.0, 2.0], ("target",) * 2)).item() == 2.5


def test_without_a_gamma_rows_are_not_weighted():
    rows = batch([2.0, 2.0], ("target", "target"))
    assert Denoising(SCHEDULE).losses(lambda noisy, *_: torch.zeros_like(noisy), rows).tolist() == [4.0, 4.0]


@pytest.mark.parametrize(("rows", "length"), [(1, 10), (4, 8), (7, 1000)])
def test_timesteps_lie_one_in_each_equal_share_and_every_step_is_as_likely(rows, length):
    drawn = [spread_timesteps(np.random.default_rng(seed), rows, length) for seed in range(400)]
    for each in drawn:
        assert each.dtype == torch.int64 and each.shape == (rows,) and each.min() >= 0 and each.max() < length
        low = [int(share * length / rows) for share in range(rows)]
        assert all(start <= t <= start + length / rows + 1 for start, t in zip(low, sorted(each.tolist()), strict=True))
    first = torch.stack(drawn)[:, 0].double()  # of any row, over all draws: uniform
    assert abs(float(first.mean()) - (length - 1) / 2) < 0.1 * length and float(first.max()) >= 0.9 * length - 1


def test_rows_of_a_source_are_found():
    assert batch([1.0, 2.0, 3.0], ("a", "b", "a")).of("a").tolist() == [True, False, True]
