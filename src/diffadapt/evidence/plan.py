"""Where every claim stands: its units, asked for again and again with what is finished."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .claim import Claim, Settings, load_claim
from .results import NO_BASE, Finished, Results, Stored, Unit, identity, read_results


@dataclass(frozen=True)
class Plan:
    """Where a claim stands.

    Args:
        results: the units asked for that are finished.
        pending: those that are not; the units of later stages are not known before these are finished.
        waits_for: claims that it uses and that are not complete; until they are, it is not asked for units.
    """

    results: Results
    pending: Sequence[Unit] = ()
    waits_for: Sequence[str] = ()

    @property
    def complete(self) -> bool:
        """Whether the claim can be judged."""
        return not self.pending and not self.waits_for


@dataclass(frozen=True)
class Evidence:
    """A folder of definitions and results, read for one base and one choice of settings.

    Args:
        folder: with the definitions.
        results: with a folder of result files for each claim; `pictures/` and the report are beside it.
        fingerprint: the base's.
        settings: what units depend on.
    """

    folder: Path
    results: Path
    fingerprint: str
    settings: Settings

    def stored(self, claim: str) -> Stored:
        """The stored results of a claim that count for this base and this definition."""
        definition = load_claim(self.folder, claim)
        on = self.fingerprint if definition.needs_base else NO_BASE
        return read_results(self.results / claim, on, definition.measures)

    def pictures(self, claim: str) -> Path:
        """Where a claim's pictures are."""
        return self.results.parent / "pictures" / claim

    def plan(self, claim: str) -> Plan:
        """Where a claim stands, after those that it uses."""
        definition = load_claim(self.folder, claim)
        used = {name: self.plan(name) for name in definition.uses}
        results = {name: each.results for name, each in used.items()}
        if waits_for := [name for name, each in used.items() if not each.complete]:
            return Plan(Results((), results), waits_for=waits_for)
        return plan(definition, self.stored(claim).finished, self.settings, results)


def plan(claim: Claim, stored: Mapping[str, Finished], settings: Settings, used: Mapping[str, Results]) -> Plan:
    """Asks a claim for its units, with no results at first, then with those of the stages that are finished.

    Args:
        claim: whose `units` is asked.
        stored: identity -> finished unit. Those that the claim does not ask for (any more) are left out.
        settings: for `units`.
        used: results of the claims that it uses.
    """
    asked: dict[str, Unit] = {}
    while True:
        results = Results([stored[key] for key in asked if key in stored], used)
        pending = [unit for key, unit in asked.items() if key not in stored]
        wanted = {} if pending else {identity(unit): unit for unit in claim.units(results, settings)}
        if wanted.keys() <= asked.keys():
            return Plan(results, pending)
        asked |= wanted


def seconds_left(pending: Iterable[Unit], finished: Iterable[Finished], workers: int) -> float | None:
    """How long some units will take: each as long as the finished ones that it has most fields in common with.

    Returns:
        seconds, or None when nothing has been measured
    """
    measured = list(finished)
    if not measured:
        return None
    total = 0.0
    for unit in pending:
        alike = [sum(each.unit.get(key) == value for key, value in unit.items()) for each in measured]
        times = [each.seconds for each, fields in zip(measured, alike, strict=True) if fields == max(alike)]
        total += sum(times) / len(times)
    return total / workers
