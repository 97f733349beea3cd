"""What a paper claims, as an experiment: which units of work it needs, how one is run, and what the results say."""

import functools
import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import Refused
from ..report.evidence_page import Verdict
from .results import Results, Unit

if TYPE_CHECKING:
    from .context import Context


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
