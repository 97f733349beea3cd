"""A contender of an experiment, and the one choice of what its tuning tries."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..adapters import Method
from .results import Finished

MOST_RATES = 7  # of one contender's tuning
Quality = Callable[[Finished], float]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One of the methods that an experiment compares.

    Args:
        method: with its settings.
        title: its name in tables.
        rates: the learning rates that its tuning begins with; none where another claim tunes it.
        roles: the roles that it adapts; none means the method's own.
        prior: whether it is trained with prior preservation.
    """

    method: Method
    title: str
    rates: tuple[float, ...] = ()
    roles: tuple[str, ...] = ()
    prior: bool = True


def tuned(runs: Iterable[Finished], quality: Quality, *, setting: str = "rate") -> Any:
    """The value of a setting whose runs have the highest mean quality; among equals the smallest value.

    Args:
        runs: of one contender's tuning, at least one.
        quality: of a run, higher is better.
        setting: the name in their units of what is tuned.
    """
    means = _means(runs, quality, setting)
    return max(sorted(means), key=lambda value: means[value])


def rates_to_try(first: Sequence[float], runs: Iterable[Finished], quality: Quality) -> list[float]:
    """Rates a factor of two apart, in order: those to begin with, and one more where the best is the outermost.

    Args:
        first: to begin with.
        runs: of one contender's tuning, as far as they are finished.
        quality: of a run, higher is better.
    """
    rates, means = sorted(first), _means(runs, quality, "rate")
    while len(rates) < MOST_RATES and all(rate in means for rate in rates):
        best = max(rates, key=lambda rate: means[rate])
        if best not in (rates[0], rates[-1]):
            return rates
        rates = [rates[0] / 2, *rates] if best == rates[0] else [*rates, rates[-1] * 2]
    return rates


def _means(runs: Iterable[Finished], quality: Quality, setting: str) -> dict[Any, float]:
    """Value of a setting -> the mean quality of its runs."""
    found: dict[Any, list[float]] = {}
    for each in runs:
        found.setdefault(each.unit[setting], []).append(quality(each))
    return {value: sum(qualities) / len(qualities) for value, qualities in found.items()}
