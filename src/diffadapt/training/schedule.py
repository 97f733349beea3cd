"""Learning-rate schedules as plain functions of the step."""

import math

SCHEDULES = ("constant", "linear", "cosine")


def learning_rate_factor(step: int, *, total: int, warmup: int, schedule: str) -> float:
    """The share of the peak learning rate at a step.

    Args:
        step: 0-based optimizer step; total: steps in all; warmup: steps of linear rise from 1/warmup.
        schedule: "constant", or "linear" / "cosine" down to 0 at `total`.

    Returns:
        a number in [0, 1]
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if schedule == "linear":
        return 1 - done
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0
