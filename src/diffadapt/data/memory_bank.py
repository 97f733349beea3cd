"""A memory bank: pictures sampled once from the untouched base, and kept on disk.

Prior preservation and retention train on them, so that the base's own idea of a class survives.

A folder with `00000.png`, `00001.png`, ... and `bank.json`: which base, which sampling settings, and for each picture
its prompt, seed and SHA-256. Both are written atomically, a batch at a time: whatever stops the sampling, the complete
batches stay, and the next `ensure` goes on behind them.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..errors import Failed, Refused
from ..files import at_home, read_json, write_atomic, write_json
from ..shapes import BANK
from .picture import png_bytes, to_tensor

Make = Callable[[list[str], list[int]], Sequence[Image.Image]]


@dataclass(frozen=True, kw_only=True)
class BankSettings:
    """The settings that all pictures of one bank share; a bank of other settings is another bank.

    Args:
        base_fingerprint: `drawing_fingerprint` of the untouched base.
        resolution: side of the pictures, in pixels.
        guidance: classifier-free guidance scale.
        steps: sampling steps.
        seed: of the first picture; picture i has seed + i.
    """

    base_fingerprint: str
    resolution: int
    guidance: float
    steps: int
    seed: int = 0


class MemoryBank:
    """A bank in a folder, empty at first.

    Args:
        folder: made when needed.
        settings: how its pictures are sampled.

    Raises:
        Refused: the folder holds a bank of another base or other settings, or a bank.json that cannot be read.
    """

    def __init__(self, folder: str | Path, settings: BankSettings) -> None:
        self.folder, self.settings = at_home(folder), settings
        self._rows: list[dict[str, str | int]] = []
        self._count = 0
        path = self.folder / "bank.json"
        if not path.exists():
            if self.folder.exists() and (
                not self.folder.is_dir() or any(not each.name.startswith(".") for each in self.folder.iterdir())
            ):
                raise Refused(
                    f"{self.folder} is in use and holds no memory bank; choose an empty or new folder, since nothing "
                    "in it is overwritten"
                )
            return
        try:
            bank = read_json(path, BANK)
        except Refused as error:
            raise Refused(f"{error}; this is no memory bank's file: delete the folder, or choose another") from error
        held = bank["settings"]
        self._rows = [{key: row[key] for key in ("file", "prompt", "seed", "sha256")} for row in bank["pictures"]]
        for key, wanted in asdict(settings).items():
            if held.get(key) != wanted:
                raise Refused(
                    f"the memory bank in {self.folder} was sampled with {key} = {held.get(key)!r}, this run has"
                    f" {wanted!r}; choose another folder, or delete this one"
                )
        self._count = len(self._rows)

    def __len__(self) -> int:
        """How many pictures `pixels` and `prompts` give: as many as the last `ensure` asked for."""
        return self._count

    @property
    def prompts(self) -> list[str]:
        """The prompt of each picture."""
        return [str(row["prompt"]) for row in self._rows[: self._count]]

    @property
    def paths(self) -> list[Path]:
        """The file of each picture."""
        return [self._path(i) for i in range(self._count)]

    @property
    def contents(self) -> list[str]:
        """SHA-256 (hex) of each picture's file; a key for caches."""
        return [str(row["sha256"]) for row in self._rows[: self._count]]

    def missing(self, count: int) -> list[int]:
        """Which of the first `count` pictures are not there, or not as they were written."""
        return [i for i in range(count) if i >= len(self._rows) or self._read(i) is None]

    def ensure(self, count: int, prompts: Sequence[str], make: Make, *, batch: int = 8) -> int:
        """Samples what is missing of the first `count` pictures; picture i has prompt i modulo the number of prompts.

        Args:
            count: how many pictures to return; a bank that holds more keeps them.
            prompts: what to ask the base for, without the concept's token.
            make: samples pictures for these prompts and seeds (lists of equal length), on the untouched base.
            batch: pictures a call of `make`.

        Returns:
            How many were sampled.

        Raises:
            Refused: no prompts, or the bank holds pictures of other prompts.
            Failed: the disk is full, or `make` returned something else than asked.
        """
        if not prompts or count < 1 or batch < 1:
            raise Refused(
                f"a memory bank needs a count, a batch and a number of prompts of 1 or more; got {count}, {batch} and"
                f" {len(prompts)}"
            )
        for i, row in enumerate(self._rows[:count]):
            if row["prompt"] != prompts[i % len(prompts)]:
                raise Refused(
                    f"the memory bank in {self.folder} holds pictures of {row['prompt']!r}, this run wants"
                    f" {prompts[i % len(prompts)]!r}; choose another folder, or delete this one"
                )
        missing = self.missing(count)
        for start in range(0, len(missing), batch):
            indices = missing[start : start + batch]
            asked = [prompts[i % len(prompts)] for i in indices]
            seeds = [self.settings.seed + i for i in indices]
            pictures = make(asked, seeds)
            side = self.settings.resolution
            if len(pictures) != len(indices) or any(picture.size != (side, side) for picture in pictures):
                sizes = [picture.size for picture in pictures]
                raise Failed(f"asked the base for {len(indices)} pictures of {side}x{side}, got {sizes}")
            if not self._rows:  # first, so that the folder is a bank's before there are pictures in it
                self._write()
            for i, prompt, seed, picture in zip(indices, asked, seeds, pictures, strict=True):
                data = png_bytes(picture.convert("RGB"))
                file = write_atomic(self.folder / f"{i:05d}.png", data).name
                row = {"file": file, "prompt": prompt, "seed": seed, "sha256": hashlib.sha256(data).hexdigest()}
                self._rows[i : i + 1] = [row]  # in order, so i is at most one past the end
            self._write()
        self._count = count
        return len(missing)

    def pixels(self) -> Tensor:
        """The pictures, (N, 3, R, R) float32 in [0, 1] at the bank's resolution.

        Raises:
            Refused: the bank is empty, or a picture was removed or changed since; `ensure` samples it again.
        """
        if not self._count:
            raise Refused(f"the memory bank in {self.folder} is empty; fill it with ensure(count, prompts, make)")
        return torch.stack([self.picture(i) for i in range(self._count)])

    def picture(self, index: int) -> Tensor:
        """One picture, (3, R, R) float32 in [0, 1], read from its file.

        Raises:
            Refused: it was removed or changed since it was sampled.
        """
        data = self._read(index)
        if data is None:
            raise Refused(f"{self._path(index)} is gone or was changed since it was sampled; start the run again")
        return to_tensor(Image.open(io.BytesIO(data)).convert("RGB")).float() / 255

    def _write(self) -> None:
        bank = {"format": 1, "settings": asdict(self.settings), "pictures": self._rows}
        write_json(self.folder / "bank.json", bank)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:05d}.png"

    def _read(self, index: int) -> bytes | None:
        """The bytes of a picture that is as it was written, otherwise None."""
        try:
            data = self._path(index).read_bytes()
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == self._rows[index]["sha256"] else None
