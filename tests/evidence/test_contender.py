"""The choice of what a tuning tries: grids that hold their optimum, and the best mean over all runs of a value."""

from collections.abc import Callable

from diffadapt.evidence import Finished, rates_to_try, tuned
from diffadapt.evidence.contender import MOST_RATES


def runs(quality: Callable[[float], float | None]) -> list[Finished]:
    """Two runs of every rate from 1/64 to 64 that has a quality, around it by as much above as below."""
    rates = [2.0**power for power in range(-6, 7)]
    known = [(rate, found) for rate in rates if (found := quality(rate)) is not None]
    return [
        Finished({"rate": rate, "subject": i}, {"score": found + (i - 0.5) * rate}, 1.0)
        for rate, found in known
        for i in range(2)
    ]


def score(each: Finished) -> float:
    return each.scores["score"]


def tried(quality: Callable[[float], float | None]) -> list[float]:
    return rates_to_try((1.0, 2.0, 4.0), runs(quality), score)


def test_a_grid_grows_until_its_best_rate_is_inside():
    assert tried(lambda rate: -abs(rate - 2)) == [1, 2, 4]
    assert tried(lambda rate: -abs(rate - 8)) == [1, 2, 4, 8, 16]
    assert tried(lambda rate: -abs(rate - 0.5)) == [0.25, 0.5, 1, 2, 4]
    assert len(tried(lambda rate: rate)) == MOST_RATES  # no end to it
    assert tried({1.0: 0.1, 2.0: 0.2}.get) == [1, 2, 4]  # one is not known yet


def test_the_highest_mean_quality_is_chosen_and_of_equals_the_smallest_value():
    assert tuned(runs(lambda rate: -abs(rate - 8)), score) == 8
    assert tuned(runs(lambda rate: 1.0 if rate in (2, 16) else 0.0), score) == 2
    by_subject = [Finished({"rate": 1.0, "lambda": each.unit["rate"]}, each.scores, 1.0) for each in runs(lambda r: r)]
    assert tuned(by_subject, score, setting="lambda") == 64
