"""Student's interval of a mean over few subjects, each with one training or several.

A few subjects are too few for the bootstrap: of 8 values, the percentiles of resampled means that would be as far out
as Student's quantile at 99 % lie beyond 2,000 resamples, and of 5 beyond what resampling can reach at all. The mean of
a subject's runs is one number that holds what the subject and its seeds add to the scatter; these numbers are
independent, and Student's interval of their mean is exact where they are normal.
"""

import math
from functools import lru_cache

from torch import Tensor

from ..errors import Refused
from .bootstrap import Interval


def interval_of_nested_mean(values: Tensor, *, level: float = 0.95) -> Interval:
    """The mean over subjects and seeds with its interval; of `a - b` the paired difference of two contenders.

    Args:
        values: (S, K) one figure a run: S >= 2 subjects (or other groups), K >= 1 seeds (or other members) of each.
        level: share of such intervals that contain the true mean, in (0, 1).

    Returns:
        the interval; its `n` is S

    Raises:
        Refused: another shape, values that are not finite, a level out of range; scipy is missing.
    """
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 1 or not values.isfinite().all():
        raise Refused(f"nested mean: expected (S, K) finite values, S >= 2, K >= 1, got shape {tuple(values.shape)}")
    if not 0 < level < 1:
        raise Refused(f"nested mean: expected level in (0, 1), for example 0.95, got {level}")
    of_subject = values.detach().double().cpu().mean(1)  # (S,)
    count, mean = len(of_subject), float(of_subject.mean())
    half = student_quantile((1 + level) / 2, count - 1) * float(of_subject.std()) / math.sqrt(count)
    return Interval(value=mean, low=mean - half, high=mean + half, n=count)


@lru_cache(maxsize=256)
def student_quantile(share: float, freedom: float) -> float:
    """Quantile of Student's distribution, for any degrees of freedom from 1 up."""
    try:
        from scipy.stats import t
    except ImportError:
        raise Refused("intervals of few subjects need scipy: pip install 'diffadapt[eval]'") from None
    return float(t.ppf(share, freedom))
