"""Measures of forgetting: in the class, and in other things.

Beside every figure of pictures stands its floor: the untouched base drawn again, from other seeds, against itself. What
is not above the floor is no forgetting.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..data.scenes import KIND_OF
from ..metrics.diversity import diversity
from ..metrics.drift import drift_features
from ..metrics.features import Features
from .figure import figure
from .judge import Judge


class Drawn(Protocol):
    """Pictures drawn by one base, (N, 3, H, W) each."""

    @property
    def of_class(self) -> Tensor: ...
    @property
    def unrelated(self) -> Tensor: ...


def pictures_forgotten(
    judge: Judge, encoder: Features, after: Drawn, before: Drawn, redrawn: Drawn, near: Tensor
) -> dict[str, dict[str, Any]]:
    """Drift of other things, near and far; leakage into the class, and how much its pictures still differ.

    Args:
        judge: that drew them.
        encoder: what sees them.
        after, before: the adapted and the untouched base's, same prompts and seeds.
        redrawn: the untouched base's from other seeds.
        near: (N,) bool, which unrelated prompts are about things of the subject's kind.
    """
    seed = judge.seed
    meaning = "change of unrelated pictures, same prompt and seed (cosine distance)"
    changed, own, other = (encoder.pictures(each.unrelated) for each in (after, before, redrawn))
    moved, floor = drift_features(changed, own), drift_features(other, own)
    rows = {"drift_features": figure(moved, None, "lower", meaning, floor=floor, seed=seed)}
    for name, some in (("near", near), ("far", ~near)):
        if 0 < int(some.sum()) < len(near):
            of = "things of its kind" if name == "near" else "things of other kinds"
            rows[f"drift_{name}"] = figure(
                moved[some], None, "lower", f"the same, {of}", floor=floor[some], seed=seed, kind="drift"
            )
    alike = [judge.fidelity(encoder, each.of_class) for each in (after, before, redrawn)]
    rows["class_leakage"] = figure(
        alike[0], alike[1], "near base", "likeness to the subject of pictures of its plain class, in many contexts; "
        "above the base, the class was lost to it", floor=alike[2], seed=seed,
    )  # fmt: skip
    differ = [diversity(encoder.subjects(each.of_class)) for each in (after, before, redrawn)]
    rows["class_diversity"] = figure(
        differ[0], differ[1], "near base", "how much pictures of the plain class differ from each other (mean pairwise "
        "cosine distance)", floor=differ[2], seed=seed, kind="other",
    )  # fmt: skip
    return rows


def about_its_kind(prompts: Sequence[str], noun: str) -> Tensor:
    """(N,) bool: which prompts name a thing of the same kind as a noun of the embedded world; all False for others."""
    kind = KIND_OF.get(noun, noun)
    return torch.tensor([any(KIND_OF.get(word) == kind for word in prompt.split()) for prompt in prompts])
