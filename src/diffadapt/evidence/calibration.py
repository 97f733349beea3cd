"""Can a definition decide? It is given experiments whose truth is known before it is given any of its own.

In a null all contenders are one and the same, each with another seed; in an oracle the claim holds. A definition whose
null finds differences, or whose oracle finds none, does not run.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import Refused
from ..report.evidence_page import Verdict
from .claim import Settings, load_claim
from .plan import plan
from .results import Finished, Results, identity

QUIET = 0.9  # share of null experiments in which every comparison must be undecided or equal
LOOKS = (30, 100, 500)  # experiments after which it may be clear: 30 quiet ones have a chance of 4 % at a share of 0.9


@dataclass(frozen=True)
class Calibration:
    """How a definition stood both tests.

    Args:
        quiet: share of null experiments in which no comparison came out better or worse and, of an exact claim, which
            has none, in which the paper's claim was not found to hold.
        experiments: how many there were.
        oracle: the verdict on ideal figures.
    """

    quiet: float
    experiments: int
    oracle: Verdict

    @property
    def passed(self) -> bool:
        held = self.oracle.paper.status == "reproduced" and self.oracle.goal.status == "met"
        return self.quiet >= QUIET and held

    def __str__(self) -> str:
        return (
            f"null quiet in {self.quiet:.0%} of {self.experiments}, oracle {self.oracle.paper.status} and "
            f"{self.oracle.goal.status}"
        )


def calibrate(folder: Path, name: str, settings: Settings | None = None, *, seed: int = 0) -> Calibration:
    """Puts one definition to both tests.

    Args:
        folder: of the definitions.
        name: the claim.
        settings: as the experiment will have them.
        seed: of the null's random numbers.
    """
    settings, claim = settings or Settings(), load_claim(folder, name)
    generator = torch.Generator().manual_seed(seed)

    def is_quiet() -> bool:
        verdict = claim.judge(simulated(folder, name, settings, generator))
        if not verdict.comparisons:
            return verdict.paper.status != "reproduced"
        return all(each.standing not in ("better", "worse") for each in verdict.comparisons)

    experiments = quiet = 0
    for look in LOOKS:
        quiet += sum(is_quiet() for _ in range(look - experiments))
        experiments = look
        if quiet in (0, experiments) or (look > LOOKS[0] and quiet >= QUIET * experiments):
            break
    return Calibration(quiet / experiments, experiments, claim.judge(simulated(folder, name, settings)))


def refuse_uncalibrated(folder: Path, name: str, settings: Settings) -> None:
    """Raises Refused when a definition fails its null or its oracle; says how."""
    found = calibrate(folder, name, settings)
    if not found.passed:
        raise Refused(
            f"{name} cannot decide and is not run: {found}; expected the null quiet in {QUIET:.0%} or more, and the "
            "oracle reproduced and met"
        )


def simulated(folder: Path, name: str, settings: Settings, generator: torch.Generator | None = None) -> Results:
    """The results of a whole experiment and of those that it uses: of the null where there are random numbers for it,
    else of the oracle. The units are those that the oracle's scores lead to.
    """
    ideal = _ideal(folder, name, settings)
    return ideal if generator is None else _rescored(folder, name, ideal, generator)


@functools.cache
def _ideal(folder: Path, name: str, settings: Settings) -> Results:
    """All units that a claim asks for, stage after stage, when each scores what its oracle says."""
    claim = load_claim(folder, name)
    assert claim.oracle is not None  # `load_claim` refuses a claim without
    used = {each: _ideal(folder, each, settings) for each in claim.uses}
    stored: dict[str, Finished] = {}
    while True:
        found = plan(claim, stored, settings, used)
        if not found.pending:
            return found.results
        stored |= {identity(unit): Finished(unit, claim.oracle(unit), 0.0) for unit in found.pending}


def _rescored(folder: Path, name: str, ideal: Results, generator: torch.Generator) -> Results:
    """The same units with the scores of the null."""
    null = load_claim(folder, name).null
    assert null is not None
    used = _NullWhenRead(folder, ideal.used, generator)
    return Results([Finished(each.unit, null(each.unit, generator), 0.0) for each in ideal], used)


class _NullWhenRead(Mapping[str, Results]):
    """Claim -> its results in the null, drawn when a judge reads them; few do."""

    def __init__(self, folder: Path, ideal: Mapping[str, Results], generator: torch.Generator) -> None:
        self._folder, self._ideal, self._generator = folder, ideal, generator
        self._drawn: dict[str, Results] = {}

    def __getitem__(self, name: str) -> Results:
        if name not in self._drawn:
            self._drawn[name] = _rescored(self._folder, name, self._ideal[name], self._generator)
        return self._drawn[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ideal)

    def __len__(self) -> int:
        return len(self._ideal)
