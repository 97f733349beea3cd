"""A memory bank of latents: sampled once from the untouched base, kept on disk, mapped into memory row by row.

Retention trains on them (Diff-Tuning). Thirty thousand pictures would fill the memory as pixels; here a row is read
when it is drawn, so what a training holds does not grow with the bank.

A folder with `00000.safetensors`, ... of up to `SHARD` rows each and `bank.json`: what the rows have in common, with a
fingerprint. A shard says the captions of its rows and is written atomically: whatever stops the sampling, the complete
shards stay, and the next `ensure` goes on behind them.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import Failed, Refused
from ..files import at_home, parse_json, read_json, save_tensors, write_json
from ..progress import Steps, say
from ..shapes import SHARD_CAPTIONS

SHARD = 64
Make = Callable[[list[int]], tuple[Tensor, list[str]]]
"""Row numbers -> latents (n, C, h, w) of these rows and their captions; row i is always the same."""


@dataclass(frozen=True, kw_only=True)
class LatentBankSettings:
    """The settings that all rows of one bank share; a bank of other settings is another bank.

    Args:
        base_fingerprint: `drawing_fingerprint` of the untouched base.
        vae: what the latents' scale and layout depend on, such as class, scaling and shift of the autoencoder.
        shape: (C, h, w) of a latent.
        sampler: class of the scheduler that made them.
        steps: sampling steps.
        guidance: classifier-free guidance scale.
        seed: of the first row; row i has seed + i.
        prompts: what was asked, in turn; row i has prompt i modulo their number.
    """

    base_fingerprint: str
    vae: str
    shape: tuple[int, int, int]
    sampler: str
    steps: int
    guidance: float
    seed: int = 0
    prompts: tuple[str, ...] = ("",)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of all of them."""
        return hashlib.sha256(json.dumps(_as_json(self), sort_keys=True).encode()).hexdigest()


class LatentBank:
    """A bank in a folder, empty at first.

    Args:
        folder: made when needed.
        settings: how its rows are sampled.

    Raises:
        Refused: the folder holds a bank of another base or other settings, or files of something else.
    """

    def __init__(self, folder: str | Path, settings: LatentBankSettings) -> None:
        self.folder, self.settings = at_home(folder), settings
        self._count = 0
        self._open: dict[int, tuple[Any, list[str]]] = {}
        path = self.folder / "bank.json"
        if not path.exists():
            if self.folder.is_dir() and any(self.folder.glob("[!.]*")):
                raise Refused(f"{self.folder} holds files and no latent bank; choose a new or empty folder")
            return
        held = read_json(path)
        if not isinstance(held, dict) or not isinstance(held.get("settings"), dict) or held.get("kind") != "latents":
            raise Refused(f"{path} is not a latent bank's; delete the folder, or choose another")
        for key, wanted in _as_json(settings).items():
            if held["settings"].get(key) != wanted:
                raise Refused(
                    f"the latent bank in {self.folder} was sampled with {key} = {held['settings'].get(key)!r}, this "
                    f"run has {wanted!r}; choose another folder, or delete this one"
                )

    def __len__(self) -> int:
        """Number of rows `latents` and `caption` give: as many as the last `ensure` asked for."""
        return self._count

    @property
    def whole_rows(self) -> int:
        """Rows on disk in shards that can be read, from the first one on."""
        shard = 0
        while (rows := len(self._captions(shard))) == SHARD:
            shard += 1
        return shard * SHARD + rows

    def ensure(self, count: int, make: Make, *, batch: int = 16, quiet: bool = False) -> int:
        """Samples what is missing of the first `count` rows; a bank that holds more keeps them.

        Args:
            count: how many rows to return.
            make: samples rows on the untouched base, see `Make`.
            batch: rows a call of `make`.
            quiet: show no progress.

        Returns:
            How many rows were sampled.

        Raises:
            Refused: a count or batch below 1.
            Failed: the disk is full, or `make` returned something else than asked; whole shards are kept.
        """
        if count < 1 or batch < 1:
            raise Refused(f"a latent bank needs a count and a batch of 1 or more, got {count} and {batch}")
        done = min(self.whole_rows, count)
        missing = count - done
        if missing:
            write_json(
                self.folder / "bank.json",
                {"kind": "latents", "format": 1, "fingerprint": self.settings.fingerprint,
                 "settings": _as_json(self.settings)},
            )  # fmt: skip
            started = time.perf_counter()
            with Steps("sample bank", count, done=done, quiet=quiet) as bar:
                for shard in range(done // SHARD, (count - 1) // SHARD + 1):
                    first = shard * SHARD
                    held = len(self._captions(shard))  # a last shard that was shorter is made whole
                    last = min(first + SHARD, count)
                    parts = [self._rows(range(first, first + held))] if held else []
                    captions = list(self._captions(shard))
                    for start in range(first + held, last, batch):
                        rows = list(range(start, min(start + batch, last)))
                        latents, asked = make(rows)
                        self._check(latents, asked, rows)
                        parts.append(latents.to("cpu", torch.float16))
                        captions += asked
                        bar.advance(by=len(rows))
                        if start == done and missing > len(rows):
                            seconds = (time.perf_counter() - started) / len(rows) * (missing - len(rows))
                            say(f"about {seconds / 60:.0f} minutes for {missing - len(rows)} more rows", quiet=quiet)
                    self._write(shard, torch.cat(parts), captions)
        self._count = count
        return missing

    def latents(self, rows: Sequence[int]) -> Tensor:
        """Rows (n, C, h, w) float32 on the CPU, read from the mapped files.

        Raises:
            Refused: a row beyond the bank, or one whose shard was removed or changed since.
        """
        beyond = [row for row in rows if not 0 <= row < self._count]
        if beyond:
            raise Refused(f"row {beyond[0]} of the latent bank in {self.folder}, which gives {self._count} rows")
        return self._rows(rows).float()

    def caption(self, row: int) -> str:
        """The prompt that made a row."""
        return self._captions(row // SHARD)[row % SHARD]

    def refreshed(
        self, folder: str | Path, settings: LatentBankSettings, make: Make, *, keep: float = 0.4, quiet: bool = False
    ) -> "LatentBank":
        """A bank for the next phase of a sequence: some rows of this one, the others made by the base as it is now.

        (Zhong et al. 2024, section 4.5: 40 % of the first bank are kept and 60 % made anew.)

        Args:
            folder, settings: of the new bank; its base is the adapted one.
            make: samples rows with what is attached now.
            keep: share of kept rows, drawn at random.
        """
        if not 0 <= keep <= 1 or not self._count:
            raise Refused(f"keep must be a share from 0 to 1 of a bank that is not empty, got {keep} of {self._count}")
        kept = np.random.default_rng(settings.seed).permutation(self._count)[: round(keep * self._count)].tolist()

        def either(rows: list[int]) -> tuple[Tensor, list[str]]:
            old = [kept[row] for row in rows if row < len(kept)]
            fresh = [row for row in rows if row >= len(kept)]
            latents, captions = make(fresh) if fresh else (self._rows([]), [])
            latents = latents.to("cpu", torch.float16)
            return torch.cat([self._rows(old), latents]), [*map(self.caption, old), *captions]

        bank = LatentBank(folder, settings)
        bank.ensure(self._count, either, quiet=quiet)
        return bank

    # --- shards -------------------------------------------------------------------------------------------------------

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:05d}.safetensors"

    def _shard(self, shard: int) -> tuple[Any, list[str]] | None:
        """An open shard with its captions; None where there is none, or it is damaged or of another kind."""
        if shard not in self._open:
            try:
                file = safe_open(self._path(shard), "pt")
                header = file.metadata() or {}
                captions = parse_json(header["captions"], SHARD_CAPTIONS, str(self._path(shard)))
                piece, good = file.get_slice("latents"), header["fingerprint"] == self.settings.fingerprint
                if not good or piece.get_shape() != [len(captions), *self.settings.shape]:
                    return None
                if hashlib.sha256(file.get_tensor("latents").numpy().tobytes()).hexdigest() != header["sha256"]:
                    return None
            except (OSError, SafetensorError, KeyError, ValueError):
                return None
            self._open[shard] = piece, captions
        return self._open[shard]

    def _captions(self, shard: int) -> list[str]:
        found = self._shard(shard)
        return found[1] if found else []

    def _rows(self, rows: Sequence[int]) -> Tensor:
        result = torch.empty(len(rows), *self.settings.shape, dtype=torch.float16)
        for i, row in enumerate(rows):
            found = self._shard(row // SHARD)
            if found is None:
                raise Refused(
                    f"{self._path(row // SHARD)} was removed or changed since the latent bank was filled; start the "
                    "run again, which samples it anew"
                )
            result[i] = found[0][row % SHARD]
        return result

    def _write(self, shard: int, latents: Tensor, captions: list[str]) -> None:
        self._open.pop(shard, None)
        facts = {"captions": json.dumps(captions), "fingerprint": self.settings.fingerprint}
        facts["sha256"] = hashlib.sha256(latents.contiguous().numpy().tobytes()).hexdigest()
        save_tensors(self._path(shard), {"latents": latents}, facts)

    def _check(self, latents: Tensor, captions: list[str], rows: list[int]) -> None:
        wanted = (len(rows), *self.settings.shape)
        if tuple(latents.shape) != wanted or len(captions) != len(rows):
            raise Failed(
                f"asked the base for latents {wanted}, got {tuple(latents.shape)} and {len(captions)} captions"
            )
        if not bool(latents.isfinite().all()):
            raise Failed(f"the base sampled latents that are not numbers (rows {rows[0]} to {rows[-1]}); none is kept")


def _as_json(settings: LatentBankSettings) -> dict[str, Any]:
    """The settings as JSON gives them back."""
    return json.loads(json.dumps(asdict(settings)))
