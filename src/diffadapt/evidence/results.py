"""Results: units of work with their raw scores, in JSON files that are added and never edited.

    evidence/results/<claim>/<UTC time>-<commit>.json

Every invocation writes one new file, and writes it anew as its units finish, so that a killed one keeps what it had.
What is finished in any file is not run again: a fresh clone goes on from what is committed.
"""

import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import Refused
from ..files import read_json, write_atomic
from ..shapes import RESULTS, Maybe, hold

Unit = dict[str, Any]  # a small JSON object, such as {"stage": "test", "contender": "oft", "subject": "fox", "seed": 0}
FORMAT = 1


def identity(unit: Unit) -> str:
    """The canonical JSON of a unit; two units are the same when it is."""
    return json.dumps(unit, sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class Finished:
    """A unit with its raw scores and the seconds that it took."""

    unit: Unit
    scores: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Results:
    """The finished units that a claim asked for, in the order in which it did, and those of the claims it uses."""

    finished: Sequence[Finished] = ()
    used: Mapping[str, "Results"] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.finished)

    def __iter__(self) -> Iterator[Finished]:
        return iter(self.finished)

    def where(self, **fields: Any) -> list[Finished]:
        """Those whose unit has these values: `results.where(stage="test", contender="oft")`."""
        return [each for each in self if all(each.unit.get(key) == value for key, value in fields.items())]

    def of(self, claim: str) -> "Results":
        """The results of another claim, one of `Claim.uses`."""
        return self.used[claim]


@dataclass(frozen=True)
class Stored:
    """The stored results of one claim for one base.

    Args:
        finished: identity -> unit with scores; of a unit that is in several files, the oldest.
        failed: identity -> (unit, its last error), of those that never finished.
        files: what each file says about its making, oldest first.
        elsewhere: why units in the folder do not count, in words -> how many: made on another base, or by a definition
            that measured something else.
    """

    finished: Mapping[str, Finished] = field(default_factory=dict)
    failed: Mapping[str, tuple[Unit, str]] = field(default_factory=dict)
    files: Sequence[Mapping[str, Any]] = ()
    elsewhere: Mapping[str, int] = field(default_factory=dict)

    def facts(self, name: str) -> list[str]:
        """The distinct values of a fact over the files."""
        return list(dict.fromkeys(str(file[name]) for file in self.files if name in file))


NO_BASE = "none"  # the fingerprint of results that stand on no base


def read_results(folder: Path, fingerprint: str, measures: int = 1) -> Stored:
    """Reads the files of one claim that were made with one base and measured one thing.

    Args:
        folder: `evidence/results/<claim>`; none is no results.
        fingerprint: the base's; of `NO_BASE` the files of every base count.
        measures: `Claim.measures`; files without the entry have 1.

    Raises:
        Refused: a file is not JSON, damaged, or of a newer format.
    """
    finished: dict[str, Finished] = {}
    failed: dict[str, tuple[Unit, str]] = {}
    files, elsewhere = [], Counter()
    for path in sorted(folder.glob("*.json"), key=lambda path: path.stem):
        held = read_json(path, {"format": Maybe(int)})
        if held.get("format", 0) > FORMAT:
            raise Refused(f"{path} was written by a newer diffadapt (format {held['format']}); update to read it")
        hold(held, RESULTS, str(path))
        if fingerprint != NO_BASE and held["base"]["fingerprint"] != fingerprint:
            elsewhere[f"on another base ({held['base']['fingerprint']})"] += len(held["units"])
            continue
        if held.get("measures", 1) != measures:
            elsewhere[f"by definition {held.get('measures', 1)}, which measured something else"] += len(held["units"])
            continue
        for row in held["units"]:
            finished.setdefault(identity(row["unit"]), Finished(row["unit"], row["scores"], row["seconds"]))
        failed |= {identity(row["unit"]): (row["unit"], row["error"]) for row in held["failed"]}
        files.append({"file": path.name} | {key: held[key] for key in held if key not in ("units", "failed")})
    return Stored(finished, {key: each for key, each in failed.items() if key not in finished}, files, elsewhere)


class ResultFile:
    """The file of one invocation, on disk as soon as it holds a unit.

    Args:
        folder: `evidence/results/<claim>`.
        facts: what made it: claim, base, commit, versions, hardware, command.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.facts = {"format": FORMAT, **facts}
        self.units: list[dict[str, Any]] = []
        self.failed: list[dict[str, Any]] = []
        name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{facts['commit']}"
        number, self.path = 1, folder / f"{name}.json"
        while self.path.exists():
            number, self.path = number + 1, folder / f"{name}-{number + 1}.json"

    def add(self, each: Finished) -> None:
        self.units.append({"unit": each.unit, "scores": each.scores, "seconds": round(each.seconds, 2)})
        self._write()

    def add_failed(self, unit: Unit, error: str, seconds: float) -> None:
        self.failed.append({"unit": unit, "error": error, "seconds": round(seconds, 2)})
        self._write()

    def _write(self) -> None:
        lists = {"units": self.units, "failed": self.failed}
        parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in self.facts.items()]
        parts += [f'"{key}": [' + ",".join(f"\n{json.dumps(row)}" for row in rows) + "]" for key, rows in lists.items()]
        write_atomic(self.path, "{" + ",\n".join(parts) + "}\n")  # a line for each unit


def commit_of(folder: Path) -> tuple[str, bool]:
    """(short commit of the clone that a folder is in, whether code or definitions differ from it).

    ("unknown", True) outside of a clone, or without git.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD"), bool(git("status", "--porcelain", "--", ":(top)src", "*.py"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown", True


def without_paths(text: str) -> str:
    """A text with every absolute path cut down to its last part."""
    return re.sub(r"(?<![\w.~/:])(?:[A-Za-z]:)?(?:[/\\][^\s/\\'\":,;()]+)*[/\\](?=[^\s/\\'\":,;()])", "", text)
