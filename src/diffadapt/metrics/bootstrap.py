"""Bootstrap intervals of means, of differences and of ratios of means.

The percentile interval of Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3. Every function
is a pure function of its values and its seed.

Runs are nested: several seeds of each subject, where the subjects differ more than the seeds. The ratio of nested means
draws subjects, then seeds within each (Davison and Hinkley, Bootstrap Methods and their Application (1997), section
3.8), and widens the interval for the few subjects there are (the expanded percentile interval of Hesterberg, What
Teachers Should Know About the Bootstrap (2015), section 4.2). Means of few subjects are in `student.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import torch
from torch import Tensor

from ..errors import Refused


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its interval; `n` independent units (values, or groups of values) stand behind it."""

    value: float
    low: float
    high: float
    n: int

    def clear_of(self, number: float) -> bool:
        """Whether the number lies outside the interval."""
        return self.low > number or self.high < number

    def as_row(self) -> dict[str, float | int | None]:
        """{"value", "low", "high", "n"}, as a run's `metrics.json` holds it; a single unit has no interval: None."""
        low, high = (self.low, self.high) if self.n > 1 else (None, None)
        return {"value": self.value, "low": low, "high": high, "n": self.n}


def interval_of_mean(
    values: Tensor, *, groups: Tensor | None = None, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """The mean of values with its bootstrap interval.

    Args:
        values: (N,) one value a picture, N >= 1.
        groups: (N,) whole numbers. Values that share a prompt are not independent: pass the prompt's number, and whole
            groups are resampled (the cluster bootstrap); the mean is over all values. None: each value is a group.
        seed: of the resampling.
        resamples: number of bootstrap samples, >= 1.
        level: share of resampled means inside the interval, in (0, 1).

    Raises:
        Refused: no values, not finite, counts that differ, or a setting out of range.
    """
    sums, counts = _by_group(values, groups)
    draws = _draws(len(sums), resamples, seed)
    drawn = counts[draws].sum(1) if groups is not None else len(sums)
    means = sums.index_select(0, draws.flatten()).view(draws.shape).sum(1) / drawn
    return _interval(float(sums.sum() / counts.sum()), means, len(sums), level)


def interval_of_figure(
    rows: Tensor, figure: Callable[[Tensor], float], *, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """A figure of a whole set, such as one of a confusion matrix of all pictures, with its bootstrap interval.

    Args:
        rows: (N, ...) what stands for each picture.
        figure: rows -> the figure.
        seed, resamples, level: as in `interval_of_mean`; pictures are drawn again with replacement.
    """
    drawn = torch.tensor([figure(rows[draw]) for draw in _draws(len(rows), resamples, seed)], dtype=torch.float64)
    return _interval(figure(rows), drawn, len(rows), level)


def interval_of_difference(
    a: Tensor,
    b: Tensor,
    *,
    paired: bool,
    groups: Tensor | None = None,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """mean(a) - mean(b) with its bootstrap interval.

    Args:
        a: (N,) values of one model.
        b: (M,) values of the other; N = M when paired.
        paired: whether a[i] and b[i] were made from the same prompt and seed. Then the differences are
            resampled, which is narrower; otherwise each side is resampled on its own.
        groups: (N,) as in `interval_of_mean`; only if paired.
        seed, resamples, level: as in `interval_of_mean`.

    Raises:
        Refused: as `interval_of_mean`, counts that differ though paired, or groups though not paired.
    """
    if paired:
        if a.shape != b.shape:
            raise Refused(f"expected paired values, got {len(a)} and {len(b)}; pass paired=False")
        return interval_of_mean(a.double() - b.double(), groups=groups, seed=seed, resamples=resamples, level=level)
    if groups is not None:
        raise Refused("groups go with paired values only; average each group first, or pass paired=True")
    means = []
    for side, values in enumerate((a, b)):
        rows, _ = _by_group(values, None)
        means.append(rows[_draws(len(rows), resamples, seed * 2 + side)].mean(1))
    value = float(a.double().mean() - b.double().mean())
    return _interval(value, means[0] - means[1], min(len(a), len(b)), level)


def interval_of_ratio(a: Tensor, b: Tensor, *, seed: int = 0, resamples: int = 2000, level: float = 0.95) -> Interval:
    """mean(a) / mean(b) of paired values with its bootstrap interval, pairs resampled together.

    Args:
        a, b: (N,) values; mean(b) > 0.
        seed, resamples, level: as in `interval_of_mean`.

    Raises:
        Refused: as `interval_of_mean`, counts that differ, or mean(b) not positive.
    """
    top, _ = _by_group(a, None)
    bottom, _ = _by_group(b, None)
    if len(top) != len(bottom):
        raise Refused(f"expected paired values, got {len(top)} and {len(bottom)}")
    if bottom.mean() <= 0:
        raise Refused(f"the denominator's mean must be > 0, got {float(bottom.mean()):.4g}")
    draws = _draws(len(top), resamples, seed)
    ratios = top[draws].sum(1) / bottom[draws].sum(1).clamp(min=torch.finfo(torch.float64).tiny)
    return _interval(float(top.sum() / bottom.sum()), ratios, len(top), level)


def interval_of_nested_ratio(
    a: Tensor, b: Tensor, *, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """mean(a) / mean(b) over subjects and seeds with its interval, the runs of both contenders resampled together.

    Args:
        a, b: (S, K) one figure a run: S >= 2 subjects, K >= 1 seeds of each; mean(b) > 0.
        seed, resamples, level: as in `interval_of_mean`.

    Raises:
        Refused: another shape, values that are not finite, a setting out of range, shapes that differ, or mean(b) not
            positive.
    """
    top, bottom = _nested(a), _nested(b)
    if top.shape != bottom.shape:
        raise Refused(f"expected paired values, got shapes {tuple(top.shape)} and {tuple(bottom.shape)}")
    if bottom.mean() <= 0:
        raise Refused(f"the denominator's mean must be > 0, got {float(bottom.mean()):.4g}")
    draws = _nested_draws(top, resamples, seed)
    ratios = _redrawn(top, draws) / _redrawn(bottom, draws).clamp(min=torch.finfo(torch.float64).tiny)
    return _interval(float(top.mean() / bottom.mean()), ratios, len(top), _widened(level, len(top)))


def _nested(values: Tensor) -> Tensor:
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 1 or not values.isfinite().all():
        raise Refused(f"bootstrap: expected (S, K) finite values, S >= 2, K >= 1, got shape {tuple(values.shape)}")
    return values.detach().cpu().double()


def _nested_draws(values: Tensor, resamples: int, seed: int) -> Tensor:
    """(resamples, S, K) indices into the flattened values: S groups are drawn, then K members of each."""
    groups, members = values.shape
    return _places(groups, members, resamples, seed)


@lru_cache(maxsize=8)
def _places(groups: int, members: int, resamples: int, seed: int) -> Tensor:
    rows = _draws(groups, resamples, seed)[..., None] * members  # (resamples, S, 1)
    columns = torch.randint(members, (resamples, groups, members), generator=torch.Generator().manual_seed(seed + 1))
    return rows + columns


def _redrawn(values: Tensor, draws: Tensor) -> Tensor:
    return values.flatten().index_select(0, draws.flatten()).view(draws.shape).mean((1, 2))


def _widened(level: float, n: int) -> float:
    """The level at which the percentile interval of n values is as wide as Student's t interval."""
    if not 0 < level < 1:
        return level
    z, v = NormalDist().inv_cdf((1 + level) / 2), n - 1
    t = (  # Student's quantile from the normal one: Abramowitz and Stegun, 26.7.5
        z + (z**3 + z) / (4 * v) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )  # fmt: skip
    return min(2 * NormalDist().cdf(math.sqrt(n / v) * t) - 1, 1 - 1e-9)


def _by_group(values: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum and count of each group, float64 on the CPU."""
    if values.ndim != 1 or len(values) == 0 or not values.isfinite().all():
        raise Refused(f"bootstrap: expected (N,) finite values, N >= 1, got shape {tuple(values.shape)}")
    values = values.detach().cpu().double()
    if groups is None:
        return values, torch.ones_like(values)
    if groups.shape != values.shape:
        raise Refused(f"bootstrap: {len(values)} values in groups of shape {tuple(groups.shape)}")
    _, group_of = groups.cpu().unique(return_inverse=True)  # (N,)
    count = int(group_of.max()) + 1
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, group_of, values)
    return sums, torch.bincount(group_of, minlength=count).double()


@lru_cache(maxsize=8)
def _draws(n: int, resamples: int, seed: int) -> Tensor:
    """(resamples, n) places, drawn once for all intervals of as many values; not to be changed."""
    if resamples < 1:
        raise Refused(f"bootstrap: expected resamples >= 1, got {resamples}")
    return torch.randint(n, (resamples, n), generator=torch.Generator().manual_seed(seed))


def _interval(value: float, resampled: Tensor, n: int, level: float) -> Interval:
    if not 0 < level < 1:
        raise Refused(f"bootstrap: expected level in (0, 1), for example 0.95, got {level}")
    tail = (1 - level) / 2
    ordered = resampled.sort().values  # the bits of torch.quantile in a third of its time: a verdict has hundreds
    low, high = (_between(ordered, share * (len(ordered) - 1)) for share in (tail, 1 - tail))
    return Interval(value=value, low=low, high=high, n=n)


def _between(ordered: Tensor, rank: float) -> float:
    """The value at a 0-based rank, on a straight line between its neighbours."""
    below = math.floor(rank)
    return float(torch.lerp(ordered[below], ordered[math.ceil(rank)], rank - below))
