"""Are two concepts in a picture? A detector that knows neither the denoiser nor any adapter.

The reader says where the objects are; the probe, which compares subjects, says how much each is like the pictures that
a concept was shown in. A threshold for each concept is set on rendered scenes that it is in: one in twenty of those may
be missed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

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

    def likeness(self, pictures: Tensor, noun: str) -> list[list[float]]:
        """How much each object found in each picture (N, 3, 64, 64) is like a concept."""
        mine, _ = self.concept(noun)
        found = [self.objects(picture) for picture in pictures]
        return [(rows @ mine).tolist() if len(rows) else [] for rows in found]

    def both(self, pictures: Tensor, first: str, second: str) -> list[bool]:
        """Whether one object is the first concept and another one the second."""
        limits = [self.concept(noun)[1] for noun in (first, second)]
        result = []
        for one, other in zip(self.likeness(pictures, first), self.likeness(pictures, second), strict=True):
            pairs = [(i, j) for i in range(len(one)) for j in range(len(other)) if i != j]
            result.append(any(one[i] >= limits[0] and other[j] >= limits[1] for i, j in pairs))
        return result

    def concept(self, noun: str) -> tuple[Tensor, float]:
        """The unit row (D,) of a concept, and the likeness from which an object counts as it."""
        file = self.kept / f"{noun}.safetensors"
        if not file.exists():
            single = self.scenes([noun], 16, seed=1)
            shown = torch.cat([rows for rows in map(self.objects, single) if len(rows)])
            mine = F.normalize(shown.mean(0), dim=0)
            best = [float((rows @ mine).max()) if len(rows) else -1.0 for rows in map(self.objects, self.pairs(noun))]
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
        return self.base.decode_latents(self.base.encode_pictures(render(drawn, sprites)[0] * 2 - 1))

    def objects(self, picture: Tensor) -> Tensor:
        """Unit rows (n, D) of the objects in one picture (3, 64, 64): cut out, on grey, as large as they fit."""
        layers = self.reader.read(picture[None]).layers[0]
        cut = [cut_out(picture, layers == layer) for layer in (1, 2) if (layers == layer).sum() >= LEAST]
        return self.encoder.subjects(torch.stack(cut)) if cut else torch.empty(0, 1)


def cut_out(picture: Tensor, mask: Tensor) -> Tensor:
    """(3, 64, 64): what the mask (H, W) covers, enlarged to fill a grey square."""
    ys, xs = mask.nonzero().T
    side = int(max(ys.max() - ys.min(), xs.max() - xs.min())) + 3
    top, left = (int((each.max() + each.min() + 1 - side) // 2) for each in (ys, xs))
    grey = torch.where(mask, picture, torch.full_like(picture, 0.5))
    padded = F.pad(grey, (side, side, side, side), value=0.5)
    square = padded[:, top + side : top + 2 * side, left + side : left + 2 * side]
    return F.interpolate(square[None], (64, 64), mode="bilinear", align_corners=False)[0]
