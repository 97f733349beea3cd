"""What a unit takes on one core: a start, steps and pictures, at CPU seconds that `benchmarks/unit_seconds.py` found.

They are those of a core with little other work beside it: what was measured, over the pace of the machine at that time.

Scoring pictures and writing files is not counted: it is a small part beside drawing them.
"""

from pathlib import Path
from typing import Any, NamedTuple

from diffadapt.files import read_json

MEASURED: dict[str, Any] = read_json(Path(__file__).parents[1] / "benchmarks" / "results" / "unit_seconds.json")
SHORT, WHOLE = (int(steps) for steps in MEASURED["picture"])  # steps of the sampling: the claims' few, the base's own


class Cost(NamedTuple):
    """What a unit is expected to take.

    Args:
        seconds: of one core.
        words: what it is made of.
    """

    seconds: float
    words: str


def cost(family: str, steps: int, pictures: float = 0.0, *, sampling: int = SHORT, starts: float = 1.0) -> Cost:
    """Of a unit that trains once and draws.

    Args:
        family: whose step it is, one of those that were measured.
        steps: of the training.
        pictures: drawn by the unit, and its share of those that units share.
        sampling: steps of each, `SHORT` or `WHOLE`.
        starts: how often the base and what reads pictures is loaded.
    """
    found = MEASURED["step"][family], MEASURED["picture"][str(sampling)], MEASURED["start"]
    step, picture, start = (seconds / MEASURED["pace"] for seconds in found)
    drawn = f", {pictures:g} pictures at {picture:.2f} s" if pictures else ""
    words = f"estimated: {steps} steps at {step:.3f} s ({family}){drawn}, a start of {start:.1f} s"
    return Cost(steps * step + pictures * picture + starts * start, words)
