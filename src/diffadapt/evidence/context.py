"""The arguments of a unit of work: the base, a folder to work in, and where data and pictures are."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from ..bases import Base
from ..errors import Refused
from .results import NO_BASE, Unit, identity


@dataclass(frozen=True, kw_only=True)
class Context:
    """The surroundings of one unit.

    Args:
        base: loaded, without attachments; to be left so. None for a claim that needs none.
        claim: id of the claim.
        unit: the unit itself.
        work: folder of all work of all claims, git-ignored; nothing in it is needed to read results.
        pictures: where pictures for the report go, `evidence/pictures/<claim>`; PNG, at most 200 kB each.
        data_folder: what --data named, or None.
    """

    base: Base | None
    claim: str
    unit: Unit
    work: Path
    pictures: Path
    data_folder: Path | None = None

    @property
    def data(self) -> Path:
        """The data folder.

        Raises:
            Refused: none was named.
        """
        if self.data_folder is None:
            raise Refused(f"{self.claim} needs data; name the folder with --data DATA")
        return self.data_folder

    @property
    def folder(self) -> Path:
        """This unit's own folder, the same in every invocation, so that a training in it is resumed; may not exist."""
        return self.folder_of(self.unit)

    @property
    def shared(self) -> Path:
        """A folder for what all units of all claims can share, such as memory banks; may not exist.

        Several units write at the same time: only files that are whole or not there, and always the same.
        """
        return self.work / "shared"

    def folder_of(self, unit: Unit, claim: str | None = None) -> Path:
        """The folder of another unit, to read what it left there; missing where the unit was run elsewhere.

        Its name begins with the unit's values, for people, and ends in what tells it from others.
        """
        place = self.work / (claim or self.claim)
        on = self.base.fingerprint if self.base else NO_BASE
        mark = hashlib.sha256(f"{on} {identity(unit)}".encode()).hexdigest()[:8]
        words = "-".join(re.sub(r"[^\w.]+", "-", str(value)).strip("-") for value in unit.values())
        return next(place.glob(f"*-{mark}"), place / f"{words[:60]}-{mark}")
