"""The first round's stored scores, judged by today's rules where they allow it, and used as the pilot of what follows.

    python evidence/first_round.py       prints the table of docs/evidence/first_round.md, and the pilot's figures

They stand on the first embedded base. Its fingerprint differs from the present one's, so that no claim reads them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffadapt.evidence.results import Finished, Results, read_results

BASE = "sha256:fe524511b49acea8"
FOLDER = Path(__file__).parent / "results"


def stored(claim: str) -> Results:
    """The first round's units of a claim that were finished."""
    return Results([*read_results(FOLDER / claim, BASE).finished.values()])


def table(runs: list[Finished], contender: str, score: Callable[[dict[str, Any]], float]) -> Tensor:
    """(subjects, seeds): one figure of every run of a contender."""
    own = sorted(
        (e for e in runs if e.unit["contender"] == contender), key=lambda e: (e.unit["subject"], e.unit["seed"])
    )
    return torch.tensor([score(each.scores) for each in own]).view(len({each.unit["subject"] for each in own}), -1)


def mean_of(name: str) -> Callable[[dict[str, Any]], float]:
    return lambda scores: sum(scores[name]) / len(scores[name])
