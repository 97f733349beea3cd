"""Measures of forgetting: in the class, in other things, and in the loss on pictures not trained on.

Beside every figure of pictures stands its floor: the untouched base drawn again, from other seeds, against itself. What
is not above the floor is no forgetting.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..bases import Base
from ..data.scenes import KIND_OF
from ..metrics.diversity import diversity
from ..metrics.drift import drift_features
from ..metrics.features import Features
from .figure import figure
from .held_out_loss import held_out_loss
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


@torch.no_grad()
def losses(base: Base, sets: Mapping[str, tuple[Tensor, Sequence[str]]], *, seed: int) -> dict[str, Tensor]:
    """Set -> (levels, N) denoising loss of the base as it is adapted now, on (pictures, prompts); paired noise."""
    return {name: held_out_loss(base, pictures, prompts, seed=seed) for name, (pictures, prompts) in sets.items()}


LOSS_SETS = {
    "concept": "on the subject's own pictures, which it was shown",
    "class": "on the untouched base's pictures of the plain class",
    "world": "on the untouched base's pictures of unrelated prompts",
}


def loss_figures(after: Mapping[str, Tensor], before: Mapping[str, Tensor], *, seed: int) -> dict[str, dict[str, Any]]:
    """By how much the denoising loss of each set rose, over all levels; below 0 it was learned, above forgotten."""
    return {
        f"loss_{name}": figure(
            (after[name] - before[name]).mean(0), None, "lower", f"rise of the denoising loss {pictures}, same noise",
            seed=seed, kind="other" if name == "concept" else "drift",
        )
        for name, pictures in LOSS_SETS.items()
    }  # fmt: skip
