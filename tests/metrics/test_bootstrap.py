"""Intervals over subjects and seeds against what they promise; the flat ones are in test_distributions.py."""

import pytest
import torch
from torch import Tensor

from diffadapt.errors import Refused
from diffadapt.metrics.bootstrap import interval_of_mean, interval_of_nested_mean, interval_of_nested_ratio


def runs(generator: torch.Generator, *, subjects: int = 8, between: float = 1.0, within: float = 0.5) -> Tensor:
    """Normal scores with mean 0, (S, 3)."""
    return between * torch.randn(subjects, 1, generator=generator) + within * torch.randn(
        subjects, 3, generator=generator
    )


@pytest.mark.parametrize(("between", "within"), [(1.0, 0.3), (0.3, 1.0)])
def test_a_nested_interval_holds_the_true_mean_as_often_as_it_says(between: float, within: float):
    generator, hits, trials = torch.Generator().manual_seed(0), 0, 400
    for i in range(trials):
        interval = interval_of_nested_mean(
            runs(generator, between=between, within=within), seed=i, resamples=500, level=0.95
        )
        hits += not interval.clear_of(0.0)
    assert 0.92 <= hits / trials <= 0.995


def test_seeds_of_one_subject_are_no_independent_witnesses():
    values = runs(torch.Generator().manual_seed(1), within=0.01)
    nested, flat = interval_of_nested_mean(values), interval_of_mean(values.flatten())
    assert nested.value == pytest.approx(flat.value) and nested.n == 8
    assert nested.high - nested.low > 1.6 * (flat.high - flat.low)


def test_with_many_subjects_the_nested_interval_is_the_normal_one():
    values = runs(torch.Generator().manual_seed(2), subjects=200, within=0.0)
    interval = interval_of_nested_mean(values, resamples=8000)
    error = float(values[:, 0].std()) / 200**0.5
    assert interval.high - interval.low == pytest.approx(2 * 1.972 * error, rel=0.05)


def test_a_paired_difference_does_not_see_what_both_have_in_common():
    generator = torch.Generator().manual_seed(3)
    hard_and_easy = 10 * torch.randn(8, 1, generator=generator)
    noise = 0.1 * torch.randn(8, 3, generator=generator)
    gain = interval_of_nested_mean((hard_and_easy + 1 + noise) - hard_and_easy)
    assert gain.low > 0.9 and gain.high < 1.1


def test_a_ratio_that_is_the_same_everywhere_is_known_exactly():
    below = 1 + torch.rand(8, 3, generator=torch.Generator().manual_seed(4))
    ratio = interval_of_nested_ratio(0.5 * below, below)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0.5, 0.5, 0.5))


def test_a_ratio_weighs_runs_by_what_stands_below_the_line():
    ratio = interval_of_nested_ratio(torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0], [3.0]]))
    assert ratio.value == pytest.approx(0.25)


def test_the_same_seed_gives_the_same_interval():
    values = runs(torch.Generator().manual_seed(5))
    assert interval_of_nested_mean(values, seed=1) == interval_of_nested_mean(values, seed=1)
    assert interval_of_nested_mean(values, seed=1) != interval_of_nested_mean(values, seed=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interval_of_nested_mean(torch.ones(3)), r"\(S, K\)"),
        (lambda: interval_of_nested_mean(torch.ones(1, 3)), "S >= 2"),
        (lambda: interval_of_nested_mean(torch.full((2, 2), float("nan"))), "finite"),
        (lambda: interval_of_nested_mean(torch.ones(2, 2), level=2.0), "level"),
        (lambda: interval_of_nested_mean(torch.ones(2, 2), resamples=0), "resamples"),
        (lambda: interval_of_nested_ratio(torch.ones(2, 2), torch.ones(2, 3)), "paired"),
        (lambda: interval_of_nested_ratio(torch.ones(2, 2), -torch.ones(2, 2)), "denominator.s mean must be > 0"),
    ],
)
def test_impossible_requests_are_refused(call, message: str):
    with pytest.raises(Refused, match=message):
        call()
