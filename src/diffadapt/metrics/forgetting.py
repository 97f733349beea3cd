"""Forgetting over a sequence of tasks: scores and distances of every task, after learning it and at the end.

Of C-LoRA (Smith et al. 2023, arXiv:2304.06027) and of the class-incremental literature (CODA-Prompt's code, Smith et
al. 2023, arXiv:2211.13218). R[i, j] is the score on task j after task i, known for j <= i.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import Refused
from .kernel_distance import mmd_squared

MMD_AS = "squared MMD, unbiased, kernel (x . y / D + 1)^3, on unit features"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Average and forgetting of a sequence of tasks, for scores where higher is better.

    Args:
        average: A_N = mean_j R[N, j], over all tasks at the end.
        forgetting: F_N = mean_{i = 2..N} mean_{j < i} (R[i-1, j] - R[i, j]): the mean loss from one task to the next,
            as CODA-Prompt's code has it; not the loss over the whole sequence. 0 for one task.
        forgetting_from_best: mean_{j < N} (max_i R[i, j] - R[N, j]), as most other papers have it.
    """

    average: float
    forgetting: float
    forgetting_from_best: float


def kept(scores: Tensor) -> Kept:
    """Average and forgetting from a matrix of scores.

    Args:
        scores: (N, N), row i after task i; entries above the diagonal are ignored.

    Raises:
        Refused: not square, or not finite on and below the diagonal.
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not len(scores):
        raise Refused(f"scores: expected (N, N), one row after each task, got {tuple(scores.shape)}")
    known = scores.double().tril()
    if not known.isfinite().all():
        raise Refused("scores: a value on or below the diagonal is not finite; evaluate every task after every task")
    count = len(known)
    steps = [(known[i - 1, :i] - known[i, :i]).mean() for i in range(1, count)]
    best = torch.stack([known[j:, j].max() - known[-1, j] for j in range(count - 1)]) if count > 1 else torch.zeros(1)
    return Kept(
        average=known[-1].mean().item(),
        forgetting=torch.stack(steps).mean().item() if steps else 0.0,
        forgetting_from_best=best.mean().item(),
    )


def a_mmd(real: Sequence[Tensor], at_end: Sequence[Tensor]) -> float:
    """A_mmd = mean_j MMD(real_j, at_end_j): how far the pictures of all concepts are from the real ones at the end.

    Args:
        real: of each concept the features (n_j, D) of its own pictures, unit rows, n_j >= 2.
        at_end: of each concept the features (m_j, D) of pictures sampled after the last task.

    Returns:
        `MMD_AS`; lower is better, a little below 0 is possible. Figures of other features or kernels do not compare.
    """
    _check_sequences(real=real, at_end=at_end)
    return sum(mmd_squared(a, b) for a, b in zip(real, at_end, strict=True)) / len(real)


def f_mmd(when_learned: Sequence[Tensor], at_end: Sequence[Tensor]) -> float:
    """F_mmd = mean_{j < N} MMD(when_learned_j, at_end_j): how far a concept's pictures strayed after it was learned.

    Args:
        when_learned: of each concept the features of pictures sampled right after its task, in order.
        at_end: the same after the last task, of the same prompts and seeds. The last concept's count for nothing.

    Returns:
        `MMD_AS`; 0.0 for one task.
    """
    _check_sequences(when_learned=when_learned, at_end=at_end)
    pairs = list(zip(when_learned, at_end, strict=True))[:-1]
    return sum(drift_mmd(a, b) for a, b in pairs) / len(pairs) if pairs else 0.0


def drift_mmd(before: Tensor, after: Tensor) -> float:
    """MMD of two sets of the same prompts and seeds; exactly 0 where no feature changed.

    The unbiased estimate of two equal sets is below 0 and not 0: each row meets its own copy in the other set.
    """
    return 0.0 if before.shape == after.shape and torch.equal(before, after) else mmd_squared(before, after)


def _check_sequences(**sets: Sequence[Tensor]) -> None:
    counts = {name: len(each) for name, each in sets.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        lengths = " and ".join(f"{name} has {count}" for name, count in counts.items())
        raise Refused(f"expected one set of features for every task, but {lengths}")
