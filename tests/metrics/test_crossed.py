"""Intervals of crossed factors hold what they say, and nested ones of crossed values do not."""

import pytest
import torch

from diffadapt.errors import Refused
from diffadapt.metrics.crossed import (
    expected_half_width,
    interval_of_crossed_difference,
    interval_of_crossed_mean,
)
from diffadapt.metrics.student import student_quantile

pytest.importorskip("scipy")


def covered(of_rows: float, of_columns: float, of_both: float, tries: int = 300) -> float:
    """How often a 95 % interval of 3 x 32 values holds the true mean, 0."""
    generator, hits = torch.Generator().manual_seed(0), 0
    for _ in range(tries):
        x = of_rows * torch.randn(3, 1, generator=generator) + of_columns * torch.randn(1, 32, generator=generator)
        found = interval_of_crossed_mean(x + of_both * torch.randn(3, 32, generator=generator))
        hits += found.low <= 0 <= found.high
    return hits / tries


@pytest.mark.parametrize("spread", [(0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 1), (0.1, 1, 1)])
def test_a_95_percent_interval_holds_the_mean_in_about_95_percent(spread: tuple[float, float, float]):
    assert 0.88 <= covered(*spread) <= 0.995


def test_columns_that_all_rows_share_count_once():
    columns = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    one, many = (interval_of_crossed_mean(columns.expand(n, -1)) for n in (2, 20))
    assert one.high - one.low == pytest.approx(many.high - many.low, rel=0.05)  # more rows bring no news


def tables(generator: torch.Generator, of_seed: float, of_picture: float, of_both: float) -> list[torch.Tensor]:
    """Four contenders that are one, 3 seeds of each, on 32 pictures that are hard or easy for all of them."""
    shared = torch.randn(1, 32, generator=generator)
    own = [of_picture * torch.randn(1, 32, generator=generator) for _ in range(4)]
    return [
        shared
        + each
        + of_seed * torch.randn(3, 1, generator=generator)
        + of_both * torch.randn(3, 32, generator=generator)
        for each in own
    ]


@pytest.mark.parametrize("spread", [(0, 0, 1), (0.2, 0, 1), (1, 0, 1), (0, 1, 1), (0.5, 1, 1)])
def test_two_of_several_contenders_that_are_one_differ_no_oftener_than_the_level_says(spread):
    generator, tries, missed = torch.Generator().manual_seed(0), 400, 0
    for _ in range(tries):
        found = tables(generator, *spread)
        missed += interval_of_crossed_difference(found[0], found[1], found, level=0.9).clear_of(0)
    assert missed / tries < 0.1 + 3 * (0.09 / tries) ** 0.5


def test_what_seeds_add_is_estimated_from_all_contenders():
    """Two whose seeds happen to agree are told apart no better than two whose seeds do not."""
    generator = torch.Generator().manual_seed(1)
    found = tables(generator, 1.0, 0.0, 0.1)
    alike = [each - each.mean(1, keepdim=True) for each in found[:2]]  # seeds that happened to agree
    widths = [
        one.high - one.low
        for one in (
            interval_of_crossed_difference(*alike, [*alike, *found[2:]]),
            interval_of_crossed_mean(alike[0] - alike[1]),
        )
    ]
    assert widths[0] > 10 * widths[1]


def test_the_expected_half_width_is_that_of_the_experiment():
    generator = torch.Generator().manual_seed(0)
    pilot = 0.3 * torch.randn(200, 1, generator=generator) + 0.1 * torch.randn(200, 3, generator=generator)
    told = expected_half_width(pilot, subjects=24)
    assert told == pytest.approx(student_quantile(0.975, 23) * (0.1 / 24) ** 0.5, rel=0.1)
    assert expected_half_width(pilot, subjects=8, seeds=3) > told  # the same number of runs, fewer subjects


def test_what_is_no_table_is_refused():
    with pytest.raises(Refused, match="I, J >= 2"):
        interval_of_crossed_mean(torch.zeros(1, 5))
    with pytest.raises(Refused, match="2 or more subjects"):
        expected_half_width(torch.zeros(3, 2), subjects=1)


def test_scores_that_are_all_equal_have_an_interval_without_width():
    found = interval_of_crossed_mean(torch.full((2, 3), 0.5))
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
