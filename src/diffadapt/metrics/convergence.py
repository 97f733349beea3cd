"""When a control training "suddenly converges": the step at which the curve of its metric leaps.

ControlNet's metric stays where it is for thousands of steps and then leaps within a few hundred (Zhang et al. 2023,
arXiv:2302.05543, section 3.5). Papers pick a threshold by hand; here it is the middle between what the curve was at
first and what it is in the end. Compare two trainings at one threshold, that of the baseline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ..errors import Refused

FEWEST = 10  # evaluations in which a leap can be told
ENDS, STAYS, CLEAR = 0.1, 3, 4.0  # share of either end, evaluations in a row, robust deviations that make a leap


@dataclass(frozen=True, kw_only=True)
class Leap:
    """A leap of a curve.

    Args:
        step: of the first evaluation past the threshold that stays past it; None where there is none.
        threshold: midway between the medians of the first and the last tenth of the evaluations.
    """

    step: int | None
    threshold: float


def find_leap(steps: Sequence[int], values: Sequence[float]) -> Leap | None:
    """The leap of a metric's curve, whichever way is better; None for a curve without one.

    Args:
        steps: of the evaluations, increasing; at least 10.
        values: the metric at each.

    Raises:
        Refused: counts that differ, or fewer than 10 evaluations.
    """
    if len(steps) != len(values) or len(values) < FEWEST:
        raise Refused(
            f"a leap is looked for in {FEWEST} or more evaluations, got {len(steps)} steps, {len(values)} values"
        )
    count = max(3, round(ENDS * len(values)))
    before, after = median(values[:count]), median(values[-count:])
    # The spread of neighbours: a slow drift is none, and the leap itself is one difference among many.
    apart = [abs(b - a) for a, b in zip(values, values[1:], strict=False)]
    spread = 1.4826 * median(apart) / 2**0.5
    if abs(after - before) < CLEAR * spread or after == before:
        return None
    threshold = (before + after) / 2
    return Leap(step=first_past(steps, values, threshold, rising=after > before), threshold=threshold)


def first_past(steps: Sequence[int], values: Sequence[float], threshold: float, *, rising: bool) -> int | None:
    """The step of the first evaluation past a threshold that stays past it for three in a row; None if none does."""
    past = [(value > threshold) == rising and value != threshold for value in values]
    for i in range(len(past) - STAYS + 1):
        if all(past[i : i + STAYS]):
            return steps[i]
    return None
