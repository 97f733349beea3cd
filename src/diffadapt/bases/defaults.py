"""Recommended settings of a base: the optional `base.json` beside its weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Refused
from ..files import read_json, write_json
from ..shapes import BASE_DEFAULTS, Maybe, hold

FORMAT_VERSION = 1
FILE = "base.json"


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """How a base is sampled when nothing else is said.

    Args:
        guidance: classifier-free guidance scale, 0 or more; 1 is none.
        steps: denoising steps, 1 or more.
        encoder: the encoder that knows its pictures, as `load_features` takes it; "" leaves it to what measures.
        world: for a base that knows a small vocabulary only: {"nouns": (...), "styles": (...), ...}; None for others.
    """

    guidance: float = 7.5
    steps: int = 30
    encoder: str = ""
    world: Mapping[str, tuple[str, ...]] | None = None


def read_defaults(folder: Path) -> Defaults:
    """Reads `base.json` of a folder; without one, Stable Diffusion's customary 30 steps at guidance 7.5.

    Raises:
        Refused: the file is not JSON, of a newer format, or a value has the wrong type or range.
    """
    path = folder / FILE
    if not path.is_file():
        return Defaults()
    found = read_json(path, {"format_version": Maybe(int)})
    version = found.get("format_version", FORMAT_VERSION)
    if version > FORMAT_VERSION:
        raise Refused(f"{path} has format {version}; this version reads up to {FORMAT_VERSION}; upgrade diffadapt")
    hold(found, BASE_DEFAULTS, str(path))
    guidance, steps = found.get("default_guidance", 7.5), found.get("default_steps", 30)
    if guidance < 0 or steps < 1:
        raise Refused(
            f"{path}: expected default_guidance from 0 up and default_steps from 1 up, got {guidance} and {steps}"
        )
    world = {key: tuple(words) for key, words in found["world"].items()} if found.get("world") else None
    return Defaults(guidance=float(guidance), steps=steps, encoder=found.get("encoder", ""), world=world)


def write_defaults(folder: Path, name: str, defaults: Defaults) -> None:
    """Writes `base.json`, so that a saved base keeps its recommendations."""
    found: dict[str, Any] = {"format_version": FORMAT_VERSION, "name": name}
    found |= {"default_guidance": defaults.guidance, "default_steps": defaults.steps}
    if defaults.encoder:
        found["encoder"] = defaults.encoder
    if defaults.world is not None:
        found["world"] = {key: list(words) for key, words in defaults.world.items()}
    write_json(folder / FILE, found)
