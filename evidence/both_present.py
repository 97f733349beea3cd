"""Are two concepts in a picture? A detector that knows neither the denoiser nor any adapter.

The reader says where the objects are; probe and second judge, which compare subjects, each say how much they are like
the pictures that a concept was shown in. From which likeness on an object counts as the concept is not decided here:
perfect renderings reach likenesses that no adapter does, so that the claim sets it on what adapters of one concept
alone draw.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffadapt.bases import Base
from diffadapt.data.scenes import Scene, World, load_sprites, render, sample_scene
from diffadapt.files import load_tensors, save_tensors
from diffadapt.metrics.features import load_features
from diffadapt.metrics.reader import load_reader

LEAST = 20  # pixels of an object


JUDGES = ("probe", "second")


class Found(NamedTuple):
    """The looks of the objects in a picture, and their places."""

    rows: dict[str, Tensor]  # judge -> (n, D), unit rows: each object cut out, on grey, as large as it fits
    centres: Tensor  # (n, 2): x, y in pixels


class Detector:
    """Finds concepts in pictures.

    Args:
        base: its autoencoder gives the scenes the look of decoded pictures.
        emoji: folder of sprite folders.
        styles: noun -> style of every concept that may be asked for.
        kept: folder where what is known of the concepts is kept.
    """

    def __init__(self, base: Base, emoji: Path, styles: Mapping[str, str], kept: Path) -> None:
        self.base, self.emoji, self.styles, self.kept = base, emoji, styles, kept
        self.reader, self.encoders = load_reader(), {name: load_features(name) for name in JUDGES}

    def find(self, pictures: Tensor) -> list[Found]:
        """The objects in each picture (N, 3, 64, 64)."""
        return [self.objects(picture) for picture in pictures]

    def likeness(self, pictures: Sequence[Found], noun: str, judge: str) -> list[list[float]]:
        """How much each object in each picture is like a concept, as a judge sees it."""
        mine = self.concept(noun)[judge]
        return [[round(value, 4) for value in (found.rows[judge] @ mine).tolist()] for found in pictures]

    def concept(self, noun: str) -> dict[str, Tensor]:
        """Judge -> the unit row (D,) of a concept."""
        file = self.kept / f"{noun}.safetensors"
        if not file.exists():
            shown = self.find(self.scenes([noun], 16, seed=1))
            rows = {judge: torch.cat([found.rows[judge] for found in shown]).mean(0) for judge in JUDGES}
            save_tensors(file, {judge: F.normalize(row, dim=0) for judge, row in rows.items()}, {})
        return load_tensors(file)[0]

    def scenes(self, nouns: Sequence[str], count: int, *, seed: int) -> Tensor:
        """Rendered scenes of one noun or two, as the autoencoder gives them back."""
        sprites: dict[tuple[str, str], Tensor] = {}
        for noun in nouns:
            world = World(nouns=(noun,), styles=(self.styles[noun],))
            sprites |= {(noun, "flat"): next(iter(load_sprites(self.emoji, world).values()))}
        rng, world = np.random.default_rng(seed), World(nouns=tuple(nouns), styles=("flat",))
        drawn: list[Scene] = [sample_scene(rng, world, two_objects=float(len(nouns) > 1)) for _ in range(count)]
        return self.base.decode_latents(self.base.encode_pictures(render(drawn, sprites)[0]))

    def objects(self, picture: Tensor) -> Found:
        """The objects in one picture (3, 64, 64)."""
        layers = self.reader.read(picture[None]).layers[0]
        masks = [layers == layer for layer in (1, 2) if (layers == layer).sum() >= LEAST]
        if not masks:
            empty = {name: each.subjects(picture[None])[:0] for name, each in self.encoders.items()}
            return Found(empty, torch.empty(0, 2))
        cut = torch.stack([cut_out(picture, mask) for mask in masks])
        centres = torch.stack([mask.nonzero().float().mean(0).flip(0) for mask in masks])
        return Found({name: each.subjects(cut) for name, each in self.encoders.items()}, centres)


def relation(
    one: Sequence[float], other: Sequence[float], centres: Sequence[Sequence[float]], least: float, least_other: float
) -> str | None:
    """How the first concept stands to the second in a picture: "next to", "above", "below"; None where one is missing.

    An object cannot be both. Of several ways to find both, the one with the highest likenesses counts.

    Args:
        one, other: likeness of each object to the first and to the second concept.
        centres: x, y of each object.
        least, least_other: from which likeness an object counts as the first, as the second.
    """
    n = len(one)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j and one[i] >= least and other[j] >= least_other]
    if not pairs:
        return None
    i, j = max(pairs, key=lambda pair: one[pair[0]] + other[pair[1]])
    dx, dy = (a - b for a, b in zip(centres[i], centres[j], strict=True))
    return "next to" if abs(dx) >= abs(dy) else "above" if dy < 0 else "below"


def cut_out(picture: Tensor, mask: Tensor) -> Tensor:
    """(3, 64, 64): what the mask (H, W) covers, enlarged to fill a grey square."""
    ys, xs = mask.nonzero().T
    side = int(max(ys.max() - ys.min(), xs.max() - xs.min())) + 3
    top, left = (int((each.max() + each.min() + 1 - side) // 2) for each in (ys, xs))
    grey = torch.where(mask, picture, torch.full_like(picture, 0.5))
    padded = F.pad(grey, (side, side, side, side), value=0.5)
    square = padded[:, top + side : top + 2 * side, left + side : left + 2 * side]
    return F.interpolate(square[None], (64, 64), mode="bilinear", align_corners=False)[0]
