"""The eight target sets of the transfer claims, and the sets that a base comes from, as they lie under --data."""

import functools
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffadapt.data.folder import Example, natural_order
from diffadapt.errors import Refused

BASE_SETS = ("noto", "twemoji", "fluent-flat", "fluent-3d", "fluent-high-contrast", "blob")
TARGETS = (
    "clothing", "sign-digits", "omniglot", "game-icons", "region-flags", "openmoji", "openmoji-line", "noto-people",
)  # fmt: skip
PEOPLE = "people-body"


def emoji(data: Path, artist: str) -> list[tuple[Path, dict[str, str]]]:
    """(file, its line of metadata.jsonl) of every emoji of an artist."""
    folder = data / "emoji" / artist
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    return [(folder / row["file_name"], row) for row in map(json.loads, lines)]


def files_of(data: Path, name: str) -> list[tuple[Path, str]]:
    """(file, class) of every picture of a set.

    Args:
        data: the folder that --data names.
        name: a target, an artist's emoji set, "noto-things" (Noto without people), "base" (all sets of `BASE_SETS`
            without people) or "dreambooth".
    """
    if name == "base":
        return [pair for artist in BASE_SETS for pair in things(data, artist)]
    if name == "noto-things":
        return things(data, "noto")
    if name == "noto-people":
        return [(file, row["subgroup"]) for file, row in emoji(data, "noto") if row["group"] == PEOPLE]
    if (data / "emoji" / name).is_dir():
        return [(file, row["group"]) for file, row in emoji(data, name)]
    if name == "dreambooth":
        found = [(file, file.parent.name) for file in sorted((data / name).glob("*/*.jpg"), key=natural_order)]
    else:
        files = sorted((data / "transfer" / name).glob("*/*/*"), key=natural_order)
        found = [(file, file.parent.name) for file in files if file.is_file()]
    if not found:
        raise Refused(f"expected the pictures of {name} under --data, found none; see docs/evidence")
    return found


def things(data: Path, artist: str) -> list[tuple[Path, str]]:
    """An artist's emoji without people."""
    return [(file, row["group"]) for file, row in emoji(data, artist) if row["group"] != PEOPLE]


@functools.lru_cache(maxsize=6)
def pixels_of(data: Path, name: str, side: int, most: int) -> Tensor:
    """Up to `most` pictures of a set in an order drawn once, (N, 3, side, side) float32 in [-1, 1], on white."""
    files = files_of(data, name)
    chosen = np.random.default_rng(0).permutation(len(files))[:most]
    rows = [Example(path=files[i][0]).read(side)[0] for i in chosen]
    return torch.stack(rows).float() / 127.5 - 1
