"""Scores of runs that were never made, for the nulls and oracles of the claims about subjects.

Subjects, runs and pictures scatter as the first round's did (`first_round.py`): of fidelity subjects with a standard
deviation of .12, two runs of one contender on one subject with .065, of what was followed .05 and .035.
"""

import math
from typing import Any
from zlib import crc32

import torch
from torch import Generator

LEVELS = 5


def subject_scores(
    subject: str,
    generator: Generator | None,
    *,
    fidelity: float = 0.58,
    followed: float = 0.8,
    leaked: float = 0.3,
    drifted: float = 0.05,
    steps: tuple[int, ...] = (30, 60, 90, 120, 150),
    speed: float = 1.0,
) -> dict[str, Any]:
    """Scores as `subjects.teach` returns them, around given means.

    Args:
        subject: moves all of its runs alike.
        generator: of what differs from run to run; None for ideal scores.
        fidelity, followed, leaked, drifted: means of the final adapter.
        steps: marks on the way.
        speed: how fast fidelity rises: a third of what is left each 30 steps at 1.
    """
    place = (crc32(subject.encode()) / 2**32 - 0.5) * math.sqrt(12)  # of this subject among all, variance 1

    def around(mean: float, of_subject: float, of_run: float) -> float:
        noise = float(torch.randn((), generator=generator)) if generator else 0.0
        return mean + of_subject * place + of_run * noise

    final = around(fidelity, 0.12, 0.065)
    at = {str(step): [final * (1 - math.exp(-speed * step / 45)) + around(0.0, 0.0, 0.06)] for step in steps}
    share = min(max(around(followed, 0.05, 0.035), 0.0), 1.0)
    return {
        "fidelity": [final],
        "fidelity_second": [around(fidelity, 0.12, 0.065)],
        "followed": {"background": [share], "position": [share]},
        "perfect": {"background": [1.0], "position": [1.0]},
        "diversity": [around(0.2, 0.05, 0.03)],
        "leaked": [max(around(leaked, 0.05, 0.05), 0.0)],
        "leak_floor": [0.0],
        "class_diversity": [0.5, 0.6],
        "drift_near": [max(around(drifted, 0.01, 0.01), 0.0)],
        "drift_far": [max(around(drifted, 0.01, 0.01), 0.0)],
        "near_floor": [0.012],
        "far_floor": [0.012],
        "loss": {name: [around(-0.01, 0.0, 0.002)] * LEVELS for name in ("concept", "class", "world")},
        "fidelity_at": at,
        "fidelity_second_at": at,
        "followed_at": {str(step): share for step in steps},
        "trainable_parameters": 190_000,
        "seconds_train": 45.0,
    }
