"""Pictures on the way of a control training, read again: how well the signals are followed, and since which step."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..bases import Base
from ..data.control_pairs import ControlPairs
from ..evaluation.evaluate_control import DECIDING, MEANINGS, needs_reader, readable
from ..files import read_json, write_json
from ..metrics.control_consistency import control_consistency
from ..metrics.convergence import FEWEST, find_leap
from ..metrics.reader import load_reader
from ..progress import Steps
from ..shapes import FOLLOWED
from .progress_samples import ProgressSamples


class ControlSamples(ProgressSamples):
    """Samples from the captions and signals of held-out pairs; the base is asked for the same captions.

    Where the signal can be read from such pictures, its agreement with the one asked for is kept in
    `samples/followed.json`, the mean over the pairs for each step that was drawn.

    Args:
        base: with what is being trained on it.
        pairs: captions and signals.
        folder: the run's folder.
        seed: picture i of every set starts from seed + i.
    """

    def __init__(self, base: Base, pairs: ControlPairs, folder: Path, seed: int) -> None:
        _, self.signals = pairs.read(range(len(pairs)), base.resolution)
        captions = pairs.captions()
        super().__init__(base, folder, captions, captions, seed, controls=list(self.signals))
        self.signal = readable(base, pairs.signal)
        self.reader = load_reader() if needs_reader(self.signal) else None
        self.curve: dict[str, float] = read_json(self.run.followed, FOLLOWED) if self.run.followed.exists() else {}

    def save_step(self, step: int, *, bar: Steps) -> list[Tensor]:
        made = super().save_step(step, bar=bar)
        if self.signal is None:
            return made
        scores = control_consistency(self.signal, self.signals, torch.stack(made), self.reader)
        rows = scores[DECIDING[self.signal]]
        if "detected" in scores:  # a signal without a landmark asks for nothing
            rows = rows[~scores["detected"].isnan()]
        if not len(rows):
            return made
        # A landmark that is not found counts as one that lies half the picture away.
        self.curve[str(step)] = round(float(rows.nan_to_num(self.base.resolution / 2).mean()), 5)
        write_json(self.run.followed, self.curve)
        return made

    def convergence(self) -> dict[str, Any]:
        """The curve and the step of its leap, for `metrics.json`.

        Returns:
            {"convergence": {"figure", "better", "pairs", "curve": [[step, value], ...], "step", "threshold"}}; step and
            threshold are None where the curve has no leap, or too few steps to tell. Empty without a curve.
        """
        if self.signal is None or not self.curve:
            return {}
        curve = sorted((int(step), value) for step, value in self.curve.items())
        steps, values = zip(*curve, strict=True)
        leap = find_leap(steps, values) if len(steps) >= FEWEST else None
        figure = DECIDING[self.signal]
        return {
            "convergence": {
                "figure": figure, "better": MEANINGS[figure][0], "pairs": len(self.prompts), "curve": curve,
                "step": leap.step if leap else None, "threshold": leap.threshold if leap else None,
            }
        }  # fmt: skip
