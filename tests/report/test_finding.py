"""One rule gives words to intervals."""

import pytest

from diffadapt.metrics import Interval
from diffadapt.report.finding import Comparison, claimed_better, confirmed, goal, within


def compare(low: float, high: float, **more) -> Comparison:
    return Comparison(name="a", interval=Interval(value=(low + high) / 2, low=low, high=high, n=8), **more)


@pytest.mark.parametrize(
    ("low", "high", "standing", "not_worse"),
    [
        (0.05, 0.2, "better", True),
        (-0.2, -0.05, "worse", False),
        (-0.02, 0.02, "equal", True),
        (0.005, 0.02, "equal", True),  # clear of nothing, and smaller than what counts
        (-0.1, 0.1, "undecided", None),
        (-0.02, 0.1, "undecided", True),
    ],
)
def test_where_an_interval_stands(low: float, high: float, standing: str, not_worse: bool | None):
    found = compare(low, high, margin=0.03)
    assert (found.standing, found.not_worse) == (standing, not_worse)
    mirrored = compare(-high, -low, margin=0.03, more_is_better=False)
    assert (mirrored.standing, mirrored.not_worse) == (standing, not_worse)
    ratio = compare(1 + low, 1 + high, margin=0.03, alike=1.0)
    assert (ratio.standing, ratio.not_worse) == (standing, not_worse)


def test_a_claim_of_being_better_needs_every_comparison():
    better, equal = compare(0.1, 0.2, margin=0.03), compare(-0.01, 0.01, margin=0.03)
    worse, open_ = compare(-0.2, -0.1, margin=0.03), compare(-0.2, 0.2, margin=0.03)
    assert claimed_better([better, better]).status == "reproduced"
    assert claimed_better([better, equal]).status == claimed_better([equal]).status == "equal"
    assert claimed_better([better, open_]).status == "undecided"
    assert claimed_better([better, open_, worse]).status == "not reproduced"


def test_a_goal_of_several_parts_is_met_when_all_are():
    assert goal([True, True], "").status == "met"
    assert goal([True, None], "").status == "undecided"
    assert goal([None, False], "").status == "not met"
    it = Interval(value=0.4, low=0.3, high=0.5, n=8)
    assert (within(it, high=0.5), within(it, high=0.2), within(it, high=0.4)) == (True, False, None)


def test_what_only_one_of_two_judges_sees_is_undecided():
    clear, unclear, against = (
        Comparison(name="a minus b", interval=Interval(value=v, low=v - 0.1, high=v + 0.1, n=8), margin=0.0)
        for v in (0.2, 0.05, -0.2)
    )
    found = claimed_better([clear])
    assert confirmed(found, [clear]).status == "reproduced" and "judge agrees" in confirmed(found, [clear]).sentence
    assert confirmed(found, [unclear]).status == "undecided"
    assert confirmed(found, [clear, unclear]).status == "undecided"
    lost = claimed_better([against])
    assert confirmed(lost, [unclear]).status == "not reproduced" and confirmed(lost, [clear]).status == "undecided"
    assert "does not agree" in confirmed(lost, [clear]).sentence
