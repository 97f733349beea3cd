"""Intervals of ratios over subjects and seeds; flat ones are in test_distributions.py, means in test_student.py."""

import pytest
import torch

from diffadapt.errors import Refused
from diffadapt.metrics.bootstrap import interval_of_nested_ratio


def test_a_ratio_that_is_the_same_everywhere_is_known_exactly():
    below = 1 + torch.rand(8, 3, generator=torch.Generator().manual_seed(4))
    ratio = interval_of_nested_ratio(0.5 * below, below)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0.5, 0.5, 0.5))


def test_a_ratio_weighs_runs_by_what_stands_below_the_line():
    ratio = interval_of_nested_ratio(torch.tensor([[1.0], [0.0]]), torch.tensor([[1.0], [3.0]]))
    assert ratio.value == pytest.approx(0.25)


def test_the_same_seed_gives_the_same_interval():
    top, bottom = torch.rand(2, 8, 3, generator=torch.Generator().manual_seed(5))
    assert interval_of_nested_ratio(top, bottom, seed=1) == interval_of_nested_ratio(top, bottom, seed=1)
    assert interval_of_nested_ratio(top, bottom, seed=1) != interval_of_nested_ratio(top, bottom, seed=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interval_of_nested_ratio(torch.ones(3), torch.ones(3)), r"\(S, K\)"),
        (lambda: interval_of_nested_ratio(torch.ones(1, 3), torch.ones(1, 3)), "S >= 2"),
        (lambda: interval_of_nested_ratio(torch.full((2, 2), float("nan")), torch.ones(2, 2)), "finite"),
        (lambda: interval_of_nested_ratio(torch.ones(2, 2), torch.ones(2, 2), level=2.0), "level"),
        (lambda: interval_of_nested_ratio(torch.ones(2, 2), torch.ones(2, 2), resamples=0), "resamples"),
        (lambda: interval_of_nested_ratio(torch.ones(2, 2), torch.ones(2, 3)), "paired"),
        (lambda: interval_of_nested_ratio(torch.ones(2, 2), -torch.ones(2, 2)), "denominator.s mean must be > 0"),
    ],
)
def test_impossible_requests_are_refused(call, message: str):
    with pytest.raises(Refused, match=message):
        call()
