"""Intervals of means over crossed factors, and the width to expect of an interval before anything is run.

Where every training seed is scored on the same pictures, seeds and pictures cross: a seed that is good is good on all
pictures, a picture that is hard is hard for all seeds. Drawing pictures within each seed, as of nested factors, counts
a picture once for each seed. The variance of the mean of a crossed table is estimated from its mean squares, with
Satterthwaite's degrees of freedom (Searle, Casella and McCulloch, Variance Components (1992), sections 4.3 and 3.6):

    x_ij = m + a_i + b_j + e_ij        Var(mean) = (MS_a + MS_b - MS_e) / (I J)
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import Refused
from .bootstrap import Interval
from .student import student_quantile


def interval_of_crossed_mean(values: Tensor, *, level: float = 0.95) -> Interval:
    """The mean of a table whose rows and columns are both random samples, with its interval.

    On normal values of 3 seeds x 32 pictures a 95 % interval holds the true mean in 91 to 98 % of the cases, whichever
    of seeds, pictures and chance is large.

    Args:
        values: (I, J), I and J >= 2; of `a - b` the paired difference of two contenders.
        level: share of such intervals that contain the true mean, in (0, 1).

    Returns:
        the interval; its `n` is the smaller of I and J

    Raises:
        Refused: another shape, or values that are not finite; scipy is missing.
    """
    if values.ndim != 2 or min(values.shape) < 2 or not values.isfinite().all():
        raise Refused(f"crossed mean: expected (I, J) finite values, I, J >= 2, got shape {tuple(values.shape)}")
    x = values.detach().cpu().double()  # (I, J)
    rows, columns = x.shape
    mean = x.mean()
    a, b = x.mean(1, keepdim=True) - mean, x.mean(0, keepdim=True) - mean  # (I, 1) and (1, J)
    squares = (  # mean squares and their degrees of freedom
        (float(columns * a.square().sum()) / (rows - 1), rows - 1),
        (float(rows * b.square().sum()) / (columns - 1), columns - 1),
        (float((x - mean - a - b).square().sum()) / ((rows - 1) * (columns - 1)), (rows - 1) * (columns - 1)),
    )
    (of_rows, _), (of_columns, _), (of_rest, _) = squares
    variance = of_rows + of_columns - of_rest
    if variance <= max(of_rows, of_columns):  # a variance component is estimated below zero: take it as 0
        kept = max(squares[:2])
        variance, freedom = kept
    else:
        freedom = variance**2 / sum(square**2 / n for square, n in squares)
    half = student_quantile((1 + level) / 2, max(freedom, 1.0)) * math.sqrt(variance / (rows * columns))
    return Interval(value=float(mean), low=float(mean) - half, high=float(mean) + half, n=min(rows, columns))


def interval_of_crossed_difference(
    first: Tensor, second: Tensor, among: Sequence[Tensor], *, level: float = 0.95
) -> Interval:
    """How two of several contenders differ, each trained with seeds of its own and all scored on the same pictures.

    Two contenders have a few seeds each, too few to tell how much seeds matter: in one comparison they seem to, in
    another not, by chance. Here that is one number, estimated from all contenders together (a split-plot design;
    Searle, Casella and McCulloch, chapter 4):

        x_kij = m_k + s_ki + c_j + d_kj + e_kij        Var(m_1 - m_2) = 2 (MS_s + MS_d - MS_e) / (I J)

    The widest interval is taken of this variance, and of MS_s and MS_d alone, which on average are not above the sum:
    so no component is left out because it looked like nothing.

    Args:
        first, second: (I, J) scores of I seeds on J pictures, I and J >= 2.
        among: those of all contenders, the two among them; their seeds and chance are assumed to scatter alike.
        level: share of such intervals that contain the true difference, in (0, 1).

    Returns:
        the interval; its `n` is I

    Raises:
        Refused: tables of different shapes, or values that are not finite; scipy is missing.
    """
    shapes = {tuple(each.shape) for each in (first, second, *among)}
    if len(among) < 2 or len(shapes) > 1 or first.ndim != 2 or min(first.shape) < 2:
        raise Refused(f"crossed difference: expected tables (I, J) of one shape, I, J >= 2, got {sorted(shapes)}")
    x = torch.stack([each.detach().cpu().double() for each in among])  # (K, I, J)
    if not x.isfinite().all():
        raise Refused("crossed difference: a score is not finite; look at the pictures it was read from")
    contenders, seeds, pictures = x.shape
    mean, of_seed, of_picture = x.mean((1, 2), keepdim=True), x.mean(2, keepdim=True), x.mean(1, keepdim=True)
    apart = of_picture - mean - (of_picture - mean).mean(0)  # d_kj
    n_seed, n_apart = contenders * (seeds - 1), (contenders - 1) * (pictures - 1)
    n_rest = n_seed * (pictures - 1)
    ms_seed = pictures * float((of_seed - mean).square().sum()) / n_seed
    ms_apart = seeds * float(apart.square().sum()) / n_apart
    ms_rest = float((x - of_seed - of_picture + mean).square().sum()) / n_rest
    candidates = [(ms_seed, float(n_seed)), (ms_apart, float(n_apart))]
    whole = ms_seed + ms_apart - ms_rest
    if whole > max(ms_seed, ms_apart):
        freedom = whole**2 / (ms_seed**2 / n_seed + ms_apart**2 / n_apart + ms_rest**2 / n_rest)
        candidates.append((whole, max(freedom, 1.0)))
    half = max(
        student_quantile((1 + level) / 2, freedom) * math.sqrt(2 * variance / (seeds * pictures))
        for variance, freedom in candidates
    )
    value = float(first.double().mean() - second.double().mean())
    return Interval(value=value, low=value - half, high=value + half, n=seeds)


def expected_half_width(pilot: Tensor, *, subjects: int, seeds: int = 1, level: float = 0.95) -> float:
    """Half width to expect of the interval of a mean over subjects and seeds, estimated from a pilot.

    Args:
        pilot: (S, K) one figure a run, S >= 2 subjects, K >= 1 seeds of each; of `a - b` for a paired difference. With
            one seed, the variance between seeds is part of the variance between subjects.
        subjects, seeds: numbers of the planned experiment.
        level: of its interval.
    """
    x = pilot.detach().double()
    if x.ndim != 2 or len(x) < 2 or not x.isfinite().all() or subjects < 2 or seeds < 1:
        raise Refused(f"half width: expected (S, K) finite values, S >= 2, got {tuple(x.shape)}; 2 or more subjects")
    within = float(x.var(1).mean()) if x.shape[1] > 1 else 0.0
    between = max(float(x.mean(1).var()) - within / x.shape[1], 0.0)
    variance = between / subjects + within / (subjects * seeds)
    return student_quantile((1 + level) / 2, subjects - 1) * math.sqrt(variance)
