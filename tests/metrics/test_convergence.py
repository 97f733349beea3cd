"""The detector of sudden convergence on curves whose leap is known, and on curves without one."""

import numpy as np
import pytest

from diffadapt.errors import Refused
from diffadapt.metrics.convergence import find_leap, first_past

STEPS = list(range(100, 10_100, 100))


@pytest.mark.parametrize("falling", [False, True])
def test_a_leap_is_found_within_two_evaluations_in_95_of_100_curves(falling: bool):
    found = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        at = int(rng.integers(2000, 8000))
        curve = 1 / (1 + np.exp(-(np.array(STEPS) - at) / 50)) + 0.05 * rng.standard_normal(len(STEPS))
        leap = find_leap(STEPS, list(-curve if falling else curve))
        found += leap is not None and leap.step is not None and abs(leap.step - at) <= 200
    assert found >= 95


def test_in_flat_noise_there_is_none_in_95_of_100_curves():
    curves = [list(np.random.default_rng(seed).standard_normal(len(STEPS))) for seed in range(100)]
    assert sum(find_leap(STEPS, curve) is None for curve in curves) >= 95


def test_a_single_outlier_past_the_threshold_is_no_convergence():
    values = [0.0] * 20
    values[5] = 1.0
    values[12:] = [1.0] * 8
    leap = find_leap(list(range(20)), values)
    assert leap is not None and (leap.step, leap.threshold) == (12, 0.5)
    assert first_past([1, 2, 3, 4], [0, 1, 1, 0], 0.5, rising=True) is None


def test_too_few_evaluations_are_refused():
    with pytest.raises(Refused, match="10 or more"):
        find_leap([1, 2, 3], [0.0, 1.0, 1.0])
