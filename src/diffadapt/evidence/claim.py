"""A paper's claim as an experiment: the units of work it needs, how one is run, and how results are judged."""

import functools
import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from torch import Generator

from ..errors import Refused
from ..report.evidence_page import Verdict
from .results import Results, Unit

if TYPE_CHECKING:
    from .context import Context


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Choices of the person who runs an experiment, on which its units depend.

    Args:
        seeds: of the trainings.
        base: name of the base: "embedded", a hub id, or the last part of a path.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    base: str = "embedded"


@dataclass(frozen=True, kw_only=True)
class Design:
    """The design of an experiment, fixed before anything is run.

    Args:
        resampled: what the intervals draw anew: "subjects", "training seeds and pictures, crossed", "nothing: exact".
        margin: which difference counts as none, with its unit.
        half_width: of the 95 % interval that decides, as a pilot predicts it for this many units; None where exact.
        pilot: what the prediction rests on, in words.
        seconds: what a unit is expected to take on one core of the machine that the results name, one figure for all or
            (unit) -> seconds; of a unit that is like a stored one, the stored time counts instead.
        basis: what that rests on, in words: timed units, or steps and pictures at measured seconds.
    """

    resampled: str
    margin: str
    half_width: float | None
    pilot: str
    seconds: "float | Callable[[Unit], float]"
    basis: str = ""

    def seconds_of(self, unit: Unit) -> float:
        return self.seconds(unit) if callable(self.seconds) else self.seconds


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One experiment; a definition file holds one, named CLAIM.

    Args:
        id: "OFT-2", in the file `oft_2.py`.
        title: what is claimed, in a sentence without its full stop.
        paper: the paper's claim as the paper makes it, with its place and figures; decides the first verdict.
        goal: what we hold ourselves to, which may be more; decides the second.
        design: how it decides.
        null: (unit, random numbers) -> scores of that unit as they would be if all contenders were the same one, each
            with another seed. No comparison may come out better or worse in more than a tenth of such experiments.
        oracle: unit -> scores as they would be if claim and goal held; both verdicts must say so.
        units: (results so far, settings) -> the units wanted. It is called with no results, and again whenever all
            that it asked for is finished, until it asks for nothing new; so a first stage may decide the settings of
            the next. The same results must give the same units.
        run: (unit, context) -> raw scores, JSON without absolute paths: every value that the judge averages. The base
            must be left as it was found.
        judge: results, all units finished -> verdict.
        uses: ids of other claims whose results `units` and `judge` read, as `results.of("OFT-2")`.
        measures: raise it when `run` measures something else under the same units; results of another number do not
            count, and the report says that they are there.
        earlier: what results that do not count any more say by today's rules, in sentences; the report tells it.
        needs_base: False for what stands on no base: no base is loaded, and the results count on every one.
    """

    id: str
    title: str
    paper: str
    goal: str
    design: Design
    units: "Callable[[Results, Settings], Sequence[Unit]]"
    run: "Callable[[Unit, Context], dict[str, Any]]"
    judge: Callable[[Results], Verdict]
    null: Callable[[Unit, Generator], dict[str, Any]] | None
    oracle: Callable[[Unit], dict[str, Any]] | None
    uses: tuple[str, ...] = ()
    measures: int = 1
    earlier: str = ""
    needs_base: bool = True


def claim_names(folder: Path) -> list[str]:
    """Ids of the claims defined in a folder: "OFT-1" for `oft_1.py`; other files are shared code.

    Raises:
        Refused: there are none; says where definitions are.
    """
    files = [path.stem for path in folder.glob("*.py") if re.fullmatch(r"[a-z]+_\d+", path.stem)]
    if not files:
        raise Refused(
            f"no definitions of claims in {folder}; they are in the folder evidence/ of a clone of the repository: run "
            "this there, or name the folder with --folder"
        )
    split = sorted((family, int(number)) for family, number in (name.split("_") for name in files))
    return [f"{family.upper()}-{number}" for family, number in split]


def load_claim(folder: Path, name: str) -> Claim:
    """The claim of one definition file.

    Raises:
        Refused: there is no such claim, or its file defines another one.
    """
    known = claim_names(folder)
    if name not in known:
        raise Refused(f"no claim {name!r} in {folder}; there are {', '.join(known)}")
    file = folder.resolve() / f"{name.lower().replace('-', '_')}.py"
    claim = getattr(_module(file), "CLAIM", None)
    if not isinstance(claim, Claim) or claim.id != name:
        raise Refused(f"{file.name} in {folder} must define CLAIM = Claim(id={name!r}, ...)")
    if claim.null is None or claim.oracle is None:
        missing = " and no ".join(kind for kind in ("null", "oracle") if getattr(claim, kind) is None)
        raise Refused(
            f"{name} has no {missing}, so it is unknown whether it can decide; {file.name} must say what its units "
            "score when all contenders are one (null) and when the claim holds (oracle)"
        )
    return claim


@functools.cache
def _module(file: Path) -> ModuleType:
    """Runs a definition file once."""
    if str(file.parent) not in sys.path:  # definitions import what they share from the files beside them
        sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
