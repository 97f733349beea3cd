"""Do two judges that share nothing but the subjects they were shown see the same? No claim rests on one of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..metrics.bootstrap import interval_of_figure
from ..metrics.features import Features
from .judge import Judge

SECOND = "second"  # the name of the second judge in `load_features`
# What the second judge, which reads subjects alone, has a say in.
FIGURES = ("subject_fidelity", "diversity", "class_leakage", "class_diversity", "drift_features")


def agreement(judge: Judge, first: Features, second: Features, drawn: Sequence[Tensor], *, seed: int) -> dict[str, Any]:
    """The figure "judges_agree": over all pictures, the correlation of two judges' likeness to the subject.

    Args:
        judge: that drew them.
        first, second: encoders.
        drawn: sets of pictures (N, 3, H, W), such as those of the adapted and of the untouched base.
        seed: of the bootstrap, which draws pictures.
    """
    pictures = torch.cat(list(drawn))
    rows = torch.stack([judge.fidelity(each, pictures).cpu().double() for each in (first, second)], 1)
    interval = interval_of_figure(rows, correlation, seed=seed)
    return interval.as_row() | {
        "base": None, "better": "higher", "unit": "", "kind": "other",
        "meaning": f"correlation of the likeness to the subject that {first.name} and {second.name} see, over all "
        "pictures of its prompts, adapted and untouched",
    }  # fmt: skip


def correlation(rows: Tensor) -> float:
    """Pearson's, of rows (N, 2); 0 where one of the two never changes."""
    centred = rows - rows.mean(0)
    length = centred.square().sum(0).sqrt()
    return float((centred[:, 0] @ centred[:, 1]) / (length[0] * length[1])) if float(length.min()) > 0 else 0.0
