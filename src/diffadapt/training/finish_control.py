"""What frames a training on control pairs: the pictures that show it, the measurements and the report at its end."""

from pathlib import Path
from typing import Any

import torch

from ..bases import Base
from ..data.control_pairs import ControlPairs
from ..data.picture import to_picture, write_png
from ..evaluation.evaluate_control import evaluate_control
from ..files import write_json
from .finish import STRENGTHS, complete
from .progress_samples import COUNT, ProgressSamples
from .run import Run


def write_pairs(folder: Path, pairs: ControlPairs, resolution: int) -> None:
    """Writes the first pairs as a report shows them: picture and signal side by side."""
    pictures, signals = pairs.read(_shown(pairs), resolution)
    for i, row in enumerate(torch.cat([pictures, signals], dim=3)):
        write_png(folder / "concept" / f"{i:02d}.png", to_picture(row))
    rows = [{"file": pairs.pairs[i].name, "caption": pairs.pairs[i].caption} for i in _shown(pairs)]
    write_json(folder / "concept" / "crops.json", rows)


def control_samples(base: Base, pairs: ControlPairs, folder: Path, seed: int) -> ProgressSamples:
    """Pictures from the captions and signals of the first pairs; the base is asked for the same captions."""
    captions = [pairs.pairs[i].caption for i in _shown(pairs)]
    _, signals = pairs.read(_shown(pairs), base.resolution)
    return ProgressSamples(base, folder, captions, captions, seed, controls=list(signals))


def finish_control(
    base: Base,
    held_out: ControlPairs | None,
    samples: ProgressSamples | None,
    folder: Path,
    *,
    seed: int,
    facts: dict[str, Any],
    started: float,
    count: int,
    quiet: bool,
) -> Run:
    """Completes a control run's folder: its files are sampled at several strengths and measured on held-out pairs.

    Args:
        base: the untouched base; held_out: pairs that were not trained on, None measures nothing.
        samples: of the run; None makes none.
        folder: the run's, with `adapter.safetensors`.
        seed: of the pictures; facts, started, quiet: as in `finish`.
        count: how many of the held-out pairs are measured; 0 skips it.
    """
    if samples:
        samples.save_strengths(folder, STRENGTHS)

    def measure() -> dict[str, Any]:
        assert held_out is not None
        return evaluate_control(base, held_out.first(count), adapters=[(folder, 1.0)], seed=seed, quiet=quiet)

    return complete(folder, measure if held_out and count else None, facts=facts, started=started, quiet=quiet)


def _shown(pairs: ControlPairs) -> range:
    return range(min(COUNT, len(pairs)))
