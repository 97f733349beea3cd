"""The cost of an experiment before anything is run: the units of all its stages, and their core-hours."""

from dataclasses import dataclass

from ..report.page import number
from .calibration import simulated
from .claim import load_claim
from .plan import Evidence, seconds_left


@dataclass(frozen=True)
class Budget:
    """The cost of one claim.

    Args:
        title: of the claim.
        units: of all stages; those of claims that it uses are counted there.
        hours: on one core, of all units, finished or not.
        width: the half width that its design expects, or "exact".
        basis: what the hours rest on, in words; "" where the design does not say.
    """

    title: str
    units: int
    hours: float
    width: str
    basis: str


def budget_of(evidence: Evidence, name: str) -> Budget:
    """Asks the definition for all its units, with the scores of its oracle, and weighs each.

    A unit takes as long as the stored one that it has most in common with; without stored ones, as its design expects.
    """
    claim = load_claim(evidence.folder, name)
    units = [each.unit for each in simulated(evidence.folder, name, evidence.settings)]
    seconds, basis = seconds_left(units, evidence.stored(name).finished.values(), workers=1), "timed: stored units"
    if seconds is None:
        seconds, basis = sum(claim.design.seconds_of(unit) for unit in units), claim.design.basis
    width = claim.design.half_width
    return Budget(claim.title, len(units), seconds / 3600, "exact" if width is None else number(width), basis)
