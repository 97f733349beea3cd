"""The objective of docs/adding_an_objective.md: where each row comes from depends on its noise level."""

import numpy as np
import torch
from torch import Tensor

from diffadapt.noise_schedule import NoiseSchedule
from diffadapt.objectives import Batch, Denoising, Draw, Model, Objective
from diffadapt.objectives.objective import spread_timesteps
from diffadapt.training.batches import Batches, Texts
from diffadapt.training.sources import Fetched, Source


class Halves(Objective):
    """Learns the target where noise is strong, and keeps what memory pictures show where it is weak."""

    sources = ("target", "memory")

    def __init__(self, schedule: NoiseSchedule, *, memory_weight: float = 1.0) -> None:
        self.denoising, self.memory_weight = Denoising(schedule), memory_weight
        self.half = schedule.length / 2

    def draw(self, rng: np.random.Generator, batch_size: int) -> Draw:
        timesteps = spread_timesteps(rng, batch_size, int(2 * self.half))
        sources = tuple("target" if t >= self.half else "memory" for t in timesteps.tolist())
        weights = torch.tensor([1.0 if each == "target" else self.memory_weight for each in sources])
        return Draw(timesteps, sources, weights)

    def losses(self, model: Model, batch: Batch) -> Tensor:
        return self.denoising.losses(model, batch)

    def reduce(self, losses: Tensor, batch: Batch) -> Tensor:
        return (batch.weights * losses).mean()


class Row(Source):
    """One picture, all of whose latents have one value."""

    def __init__(self, value: float, caption: str) -> None:
        self.value, self.caption = value, caption

    def captions(self) -> list[str]:
        return [self.caption]

    def pick(self, rng: np.random.Generator, size: int, place: int) -> list[tuple[int, str]]:
        return [(0, self.caption)] * size

    def fetch(self, index: int) -> Fetched:
        return Fetched(torch.full((4, 4, 4), self.value))


def test_rows_come_from_where_their_noise_level_says(tiny_base):
    schedule = NoiseSchedule(alphas_cumprod=torch.linspace(0.99, 0.01, 1000), prediction_type="epsilon")
    objective = Halves(schedule, memory_weight=0.5)
    sources = {"target": Row(1.0, "a cat"), "memory": Row(2.0, "a dog")}
    texts = Texts(tiny_base, ["a cat", "a dog"])
    batches = Batches(tiny_base, objective, sources, texts, batch_size=6, parts=1, seed=0, process=0)
    batch = batches.batch(0, 0)
    noisy = batch.timesteps >= 500
    assert int(noisy.sum()) == 3 and torch.equal(batch.of("target"), noisy)
    assert torch.equal(batch.latents[:, 0, 0, 0], torch.where(noisy, 1.0, 2.0))
    expected = texts.of(["a cat" if each else "a dog" for each in noisy.tolist()])
    assert torch.equal(batch.condition.token_ids, expected.token_ids)
    losses = objective.losses(lambda noisy, timesteps, condition: noisy, batch)
    by_hand = (losses[noisy].sum() + 0.5 * losses[~noisy].sum()) / 6
    torch.testing.assert_close(objective.reduce(losses, batch), by_hand)
