"""What a paper claims, as an experiment: which units of work it needs, how one is run, and what the results say."""

import importlib
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..config import unknown
from ..errors import Refused
from ..report.evidence_page import Forest, Plot, Table
from .results import Results, Unit

if TYPE_CHECKING:
    from .context import Context

Status = Literal["reproduced", "not reproduced", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the person who runs an experiment chooses and its units depend on.

    Args:
        seeds: of the trainings.
        base: name of the base: "embedded", a hub id, or the last part of a path.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    base: str = "embedded"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the results say.

    Args:
        status: "reproduced" when the goal is met with its interval, "not reproduced" when it is missed with its
            interval, else "undecided".
        sentence: one sentence with the figures that decide.
        tables: all figures behind it.
        plots: where a picture says more than a table.
        pictures: names of files in `evidence/pictures/<claim>/`, (name, caption).
    """

    status: Status
    sentence: str
    tables: Sequence[Table] = ()
    plots: Sequence[Plot | Forest] = ()
    pictures: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One experiment; a definition file holds one, named CLAIM.

    Args:
        id: "OFT-2", in the file `oft_2.py`.
        title: what is claimed, in a sentence without its full stop.
        paper: where the paper says so, with its own figures.
        goal: what counts as reproduced.
        units: (results so far, settings) -> the units wanted. It is called with no results, and again whenever all
            that it asked for is finished, until it asks for nothing new; so a first stage may decide the settings of
            the next. The same results must give the same units.
        run: (unit, context) -> raw scores, JSON without absolute paths: every value that the judge averages. The base
            must be left as it was found.
        judge: results, all units finished -> verdict.
        uses: ids of other claims whose results `units` and `judge` read, as `results.of("OFT-2")`.
    """

    id: str
    title: str
    paper: str
    goal: str
    units: "Callable[[Results, Settings], Sequence[Unit]]"
    run: "Callable[[Unit, Context], dict[str, Any]]"
    judge: Callable[[Results], Verdict]
    uses: tuple[str, ...] = ()


def claim_names(folder: Path) -> list[str]:
    """Ids of the claims defined in a folder: "OFT-1" for `oft_1.py`; other files are shared code.

    Raises:
        Refused: there are none; says where definitions are.
    """
    names = [
        path.stem.upper().replace("_", "-") for path in folder.glob("*.py") if re.fullmatch(r"[a-z]+_\d+", path.stem)
    ]
    if not names:
        raise Refused(
            f"no definitions of claims in {folder}; they are in the folder evidence/ of a clone of the repository: run "
            "this there, or name the folder with --folder"
        )
    return sorted(names, key=lambda name: (name.split("-")[0], int(name.split("-")[1])))


def load_claim(folder: Path, name: str) -> Claim:
    """The claim of one definition file.

    Raises:
        Refused: there is no such claim, or its file defines another one.
    """
    known = claim_names(folder)
    if name not in known:
        raise Refused(unknown(name, known))
    place = str(folder.resolve())
    if place not in sys.path:  # definitions import what they share from the files beside them
        sys.path.insert(0, place)
    claim = getattr(importlib.import_module(name.lower().replace("-", "_")), "CLAIM", None)
    if not isinstance(claim, Claim) or claim.id != name:
        raise Refused(f"{name.lower().replace('-', '_')}.py in {folder} must define CLAIM = Claim(id={name!r}, ...)")
    return claim
