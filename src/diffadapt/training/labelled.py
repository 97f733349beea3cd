"""Batches of labelled pictures for a classifier: shuffled rounds, cropped at random and mirrored."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..bases import Classifier
from ..data.captioned import Captioned
from ..objectives import Batch, Objective
from . import seeds
from .sources import shuffled

MEMORY = 2**30  # bytes of decoded pictures that are kept; what does not fit is decoded every time


class LabelledPictures:
    """The pictures of some classes.

    Args:
        pictures: class -> pictures.
        first: label of the first class; the others count on.
        size: side in pixels.
    """

    def __init__(self, pictures: Mapping[str, Captioned], *, first: int, size: int) -> None:
        rows = [(each, i, first + k) for k, each in enumerate(pictures.values()) for i in range(len(each))]
        self._rows, self.size = rows, size
        self.labels = torch.tensor([label for *_, label in rows])
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def pixels(self, indices: list[int]) -> Tensor:
        """(len(indices), 3, R, R) float32 in [0, 1]."""
        return torch.stack([self._decoded(index) for index in indices]).float() / 255

    def _decoded(self, index: int) -> Tensor:
        if index in self._kept:
            return self._kept[index]
        folder, place, _ = self._rows[index]
        picture = folder.examples[place].read(self.size, folder.notes)[0]
        if (len(self._kept) + 1) * picture.numel() <= MEMORY:
            self._kept[index] = picture
        return picture


class LabelledBatches:
    """Draws batches as a function of (seed, step, part), so that a resumed run sees the same ones.

    Args:
        network: what is adapted.
        objective: says how many rows there are.
        pictures: of the task.
        batch_size: as the user set it; a batch holds no picture twice while there are enough.
        parts: batches in a step (gradient accumulation).
        seed: what the draws depend on, beside the step.
        smallest_crop: the least share of a picture's area that a crop keeps; 1 crops nothing.
        mirror: whether half of the pictures are mirrored.
    """

    def __init__(
        self,
        network: Classifier,
        objective: Objective,
        pictures: LabelledPictures,
        *,
        batch_size: int,
        parts: int,
        seed: int,
        smallest_crop: float,
        mirror: bool,
    ) -> None:
        self.network, self.objective, self.pictures = network, objective, pictures
        self.batch_size, self.parts, self.seed = batch_size, parts, seed
        self.smallest_crop, self.mirror = smallest_crop, mirror
        self.rows = objective.rows(batch_size)

    def batch(self, step: int, part: int) -> Batch:
        """The batch of one accumulation part of one step."""
        rng = seeds.rng(self.seed, 0, step, part)
        place = (step * self.parts + part) * self.batch_size
        chosen = shuffled(len(self.pictures), self.rows, first=place, seed=self.seed, process=0)
        draw = self.objective.draw(rng, self.batch_size)
        device = self.network.device
        pixels = self._varied(self.pictures.pixels(chosen), rng).to(device)
        labels = self.pictures.labels[chosen].to(device)
        return Batch(
            latents=pixels, noise=torch.zeros_like(pixels[:, :0]), timesteps=draw.timesteps.to(device),
            condition=self.network.condition(pixels, labels), sources=draw.sources,
        )  # fmt: skip

    def _varied(self, pixels: Tensor, rng: np.random.Generator) -> Tensor:
        """A random square of each picture at the picture's size, mirrored or not."""
        count = len(pixels)
        side = np.sqrt(rng.uniform(self.smallest_crop, 1.0, count))
        shift = rng.uniform(-1, 1, (2, count)) * (1 - side)
        sign = np.where(rng.random(count) < 0.5, -1.0, 1.0) if self.mirror else np.ones(count)
        if self.smallest_crop == 1.0 and not self.mirror:
            return pixels
        zero = np.zeros(count)
        map_ = np.stack([np.stack([side * sign, zero, shift[0]], 1), np.stack([zero, side, shift[1]], 1)], 1)
        grid = F.affine_grid(torch.from_numpy(map_).float(), list(pixels.shape), align_corners=False)
        return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
