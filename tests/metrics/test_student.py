"""Intervals of means over few subjects hold the truth as often as they say, at every level that definitions use."""

import pytest
import torch

from diffadapt.errors import Refused
from diffadapt.metrics.bootstrap import interval_of_mean
from diffadapt.metrics.student import interval_of_nested_mean

pytest.importorskip("scipy")

TRIES = 1500


def runs(generator: torch.Generator, *, subjects: int = 8, seeds: int = 3, between: float = 1.0, within: float = 0.5):
    """Normal scores with mean 0, (S, K)."""
    rows = between * torch.randn(subjects, 1, generator=generator)
    return rows + within * torch.randn(subjects, seeds, generator=generator)


def misses(subjects: int, level: float, seeds: int, **spread: float) -> float:
    """How often an interval is clear of the true mean."""
    generator, tries = torch.Generator().manual_seed(0), TRIES
    found = (interval_of_nested_mean(runs(generator, subjects=subjects, seeds=seeds, **spread), level=level)
             for _ in range(tries))  # fmt: skip
    return sum(each.clear_of(0.0) for each in found) / tries


@pytest.mark.parametrize(("subjects", "level"), [(5, 0.95), (8, 0.975), (8, 0.99), (2, 0.9)])
@pytest.mark.parametrize(("seeds", "between"), [(1, 1.0), (3, 1.0), (3, 0.1)])
def test_an_interval_of_few_subjects_misses_the_mean_as_seldom_as_it_says(subjects, level, seeds, between):
    wrong, error = 1 - level, ((1 - level) * level / TRIES) ** 0.5
    assert abs(misses(subjects, level, seeds, between=between) - wrong) < 3.5 * error


def test_the_interval_is_students_of_the_subjects_means():
    values = torch.tensor([[1.0, 3.0], [2.0, 4.0], [6.0, 8.0]])  # means 2, 3, 7; mean 4, variance 7
    found = interval_of_nested_mean(values)
    half = 4.30265 * (7 / 3) ** 0.5
    assert (found.value, found.low, found.high) == pytest.approx((4.0, 4 - half, 4 + half), abs=1e-4) and found.n == 3


def test_seeds_of_one_subject_are_no_independent_witnesses():
    values = runs(torch.Generator().manual_seed(1), within=0.01)
    nested, flat = interval_of_nested_mean(values), interval_of_mean(values.flatten())
    assert nested.value == pytest.approx(flat.value) and nested.n == 8
    assert nested.high - nested.low > 1.6 * (flat.high - flat.low)


def test_a_paired_difference_does_not_see_what_both_have_in_common():
    generator = torch.Generator().manual_seed(3)
    hard_and_easy = 10 * torch.randn(8, 1, generator=generator)
    noise = 0.1 * torch.randn(8, 3, generator=generator)
    gain = interval_of_nested_mean((hard_and_easy + 1 + noise) - hard_and_easy)
    assert gain.low > 0.9 and gain.high < 1.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interval_of_nested_mean(torch.ones(3)), r"\(S, K\)"),
        (lambda: interval_of_nested_mean(torch.ones(1, 3)), "S >= 2"),
        (lambda: interval_of_nested_mean(torch.full((2, 2), float("nan"))), "finite"),
        (lambda: interval_of_nested_mean(torch.ones(2, 2), level=2.0), "level"),
    ],
)
def test_impossible_requests_are_refused(call, message: str):
    with pytest.raises(Refused, match=message):
        call()
