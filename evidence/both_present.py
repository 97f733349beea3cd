"""Are two concepts in a picture? A detector that knows neither the denoiser nor any adapter.

The reader says where the objects are; the probe, which compares subjects, says how much each is like the pictures that
a concept was shown in. A threshold for each concept is set on rendered scenes that it is in: one in twenty of those may
be missed.
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

LEAST, MISSED, SCENES = 20, 0.05, 64  # pixels of an object; share that the threshold misses; scenes that set it


class Found(NamedTuple):
    """What the objects in a picture look like, and where they are."""

    rows: Tensor  # (n, D), unit rows: each object cut out, on grey, as large as it fits
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
        self.reader, self.encoder = load_reader(), load_features("probe")

    def find(self, pictures: Tensor) -> list[Found]:
        """The objects in each picture (N, 3, 64, 64)."""
        return [self.objects(picture) for picture in pictures]

    def likeness(self, pictures: Sequence[Found], noun: str) -> list[list[float]]:
        """How much each object in each picture is like a concept."""
        mine, _ = self.concept(noun)
        return [(found.rows @ mine).tolist() for found in pictures]

    def relations(self, pictures: Sequence[Found], first: str, second: str) -> list[str | None]:
        """How the first concept stands to the second: "next to", "above" or "below"; None where one of them is missing.

        An object cannot be both. Of several ways to find both, the one with the highest likenesses counts.
        """
        (one, least), (other, least_other) = self.concept(first), self.concept(second)
        return [self._relation(found, one, least, other, least_other) for found in pictures]

    def _relation(self, found: Found, one: Tensor, least: float, other: Tensor, least_other: float) -> str | None:
        a, b, n = found.rows @ one, found.rows @ other, len(found.rows)
        pairs = [(i, j) for i in range(n) for j in range(n) if i != j and a[i] >= least and b[j] >= least_other]
        if not pairs:
            return None
        i, j = max(pairs, key=lambda pair: float(a[pair[0]] + b[pair[1]]))
        dx, dy = (found.centres[i] - found.centres[j]).tolist()
        return "next to" if abs(dx) >= abs(dy) else "above" if dy < 0 else "below"

    def concept(self, noun: str) -> tuple[Tensor, float]:
        """The unit row (D,) of a concept, and the likeness from which an object counts as it."""
        file = self.kept / f"{noun}.safetensors"
        if not file.exists():
            single = self.scenes([noun], 16, seed=1)
            shown = torch.cat([found.rows for found in self.find(single)])
            mine = F.normalize(shown.mean(0), dim=0)
            found = [each.rows @ mine for each in self.find(self.pairs(noun))]
            best = [float(likeness.max()) if len(likeness) else -1.0 for likeness in found]
            save_tensors(file, {"row": mine, "limit": torch.tensor(float(np.quantile(best, MISSED)))})
        known, _ = load_tensors(file)
        return known["row"], float(known["limit"])

    def pairs(self, noun: str) -> Tensor:
        """Scenes of a concept beside each of the others."""
        others = [other for other in self.styles if other != noun]
        count = -(-SCENES // len(others))
        return torch.cat([self.scenes([noun, other], count, seed=2 + i) for i, other in enumerate(others)])

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
            return Found(torch.empty(0, self.encoder.subjects(picture[None]).shape[1]), torch.empty(0, 2))
        cut = torch.stack([cut_out(picture, mask) for mask in masks])
        centres = torch.stack([mask.nonzero().float().mean(0).flip(0) for mask in masks])
        return Found(self.encoder.subjects(cut), centres)


def cut_out(picture: Tensor, mask: Tensor) -> Tensor:
    """(3, 64, 64): what the mask (H, W) covers, enlarged to fill a grey square."""
    ys, xs = mask.nonzero().T
    side = int(max(ys.max() - ys.min(), xs.max() - xs.min())) + 3
    top, left = (int((each.max() + each.min() + 1 - side) // 2) for each in (ys, xs))
    grey = torch.where(mask, picture, torch.full_like(picture, 0.5))
    padded = F.pad(grey, (side, side, side, side), value=0.5)
    square = padded[:, top + side : top + 2 * side, left + side : left + 2 * side]
    return F.interpolate(square[None], (64, 64), mode="bilinear", align_corners=False)[0]
