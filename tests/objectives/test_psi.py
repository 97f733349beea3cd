"""psi and the quantile of a noise level, by hand on a few numbers."""

import pytest
import torch

from diffadapt.errors import Refused
from diffadapt.objectives.psi import noise_quantile, psi

QUANTILES = torch.tensor([0.2, 0.3, 0.6, 1.0], dtype=torch.float64)
RATIO = torch.tensor([0.0, 0.5, 1.0, 3.0], dtype=torch.float64)


def close(found: torch.Tensor, *expected: float) -> None:
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_the_quantile_counts_the_law_s_draws_at_this_level_or_below():
    law = torch.tensor([3.0, 1.0, 2.0, 2.0])  # in any order, levels may repeat
    close(noise_quantile(torch.tensor([0.5, 1.0, 1.5, 2.0, 3.0, 9.0]), law), 0, 0.25, 0.25, 0.75, 1, 1)


def test_quantiles_are_counted_in_float64():
    law = torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64)  # one number in float32
    close(noise_quantile(law, law), 0.5, 1.0)
    close(noise_quantile(law.flip(0)[::1], law), 1.0, 0.5)


def test_levels_may_be_a_view_with_strides():
    law = torch.tensor([1.0, 2.0, 3.0, 4.0])
    close(noise_quantile(law[::2], law), 0.25, 0.75)


def test_power_is_the_quantile_to_the_power_of_tau_and_tau_is_one_unless_given():
    close(psi("power", RATIO, QUANTILES, tau=2.0), 0.04, 0.09, 0.36, 1)
    close(psi("power", RATIO, QUANTILES), 0.2, 0.3, 0.6, 1)
    close(psi("power", RATIO, QUANTILES, tau=0), 1, 1, 1, 1)
    close(psi("power", RATIO.float(), QUANTILES.bfloat16().double(), tau=1.0), *QUANTILES.bfloat16().tolist())
    with pytest.raises(Refused, match="psi decreases with noise at tau = -0.5"):
        psi("power", RATIO, QUANTILES, tau=-0.5)


def test_snr_is_one_over_one_plus_snr():
    close(psi("snr", RATIO, QUANTILES), 0, 0.2, 0.5, 0.9)  # SNR = 1 / ratio^2: infinite, 4, 1, 1/9
    assert psi("snr", RATIO.float(), QUANTILES).dtype == torch.float64


def test_a_step_is_one_above_its_quantile_and_nought_at_it():
    close(psi("step", RATIO, QUANTILES), 0, 0, 1, 1)  # 0.3 unless given
    close(psi("step", RATIO, QUANTILES, step_at=0.6), 0, 0, 0, 1)
    close(psi("step", RATIO, QUANTILES, step_at=0.1), 1, 1, 1, 1)


def test_a_table_is_read_on_straight_lines_between_equally_spaced_quantiles():
    close(psi("table", RATIO, QUANTILES, table=(0.0, 0.4, 1.0)), 0.16, 0.24, 0.52, 1)
    close(psi("table", RATIO, QUANTILES.float(), table=(0.5, 1.0)), *(0.5 + QUANTILES.float().double() / 2).tolist())
    close(psi("table", RATIO, QUANTILES, table=(0.0, 0.0)), 0, 0, 0, 0)  # the ends and equal neighbours are allowed
    close(psi("table", RATIO, QUANTILES, table=(1.0, 1.0)), 1, 1, 1, 1)


@pytest.mark.parametrize("table", [(), (0.5,), (-0.1, 0.5), (0.5, 1.1), (0.5, 0.4, 1.0), (0.1, 0.5, 0.4)])
def test_a_table_that_is_too_short_leaves_its_range_or_decreases_is_refused(table):
    with pytest.raises(Refused, match=r"psi_table must hold 2 or more values in \[0, 1\] that do not decrease"):
        psi("table", RATIO, QUANTILES, table=table)


def test_another_family_is_refused_with_those_that_there_are():
    with pytest.raises(Refused, match="psi family 'cosine'; expected power, snr, step, table"):
        psi("cosine", RATIO, QUANTILES)  # pyright: ignore[reportArgumentType]
