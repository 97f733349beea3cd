"""The denoising objective: the squared error of a base's own prediction, with Min-SNR weights.

The arithmetic of noise levels and parametrisations is in `noise_schedule`.
"""

import numpy as np
from torch import Tensor

from ..noise_schedule import NoiseSchedule
from .objective import Batch, Draw, Model, Objective, spread_timesteps


class Denoising(Objective):
    """Predicts what was mixed with the picture: the squared error, averaged over places and rows.

    Args:
        schedule: how the base mixes data with noise, and what it predicts.
        snr_gamma: Min-SNR gamma of the rows' weights, 0 for none; 5 is usual.
    """

    def __init__(self, schedule: NoiseSchedule, *, snr_gamma: float = 0.0) -> None:
        self.schedule, self.snr_gamma = schedule, snr_gamma

    def draw(self, rng: np.random.Generator, batch_size: int) -> Draw:
        return Draw(spread_timesteps(rng, batch_size, self.schedule.length), ("target",) * batch_size)

    def losses(self, model: Model, batch: Batch) -> Tensor:
        error = self.squared_error(model, batch)  # (N, C, h, w)
        return error.mean((1, 2, 3)) * self.schedule.weight(batch.timesteps, self.snr_gamma)

    def squared_error(self, model: Model, batch: Batch) -> Tensor:
        """(prediction - target)^2 at every place, (N, C, h, w) float32."""
        noisy = self.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        prediction = model(noisy, batch.timesteps, batch.condition).float()
        return (prediction - self.target(model, noisy, batch).float()).square()

    def target(self, model: Model, noisy: Tensor, batch: Batch) -> Tensor:
        """What the base is to predict of the noised rows, (N, C, h, w)."""
        return self.schedule.target(batch.latents, batch.noise, batch.timesteps)

    def reduce(self, losses: Tensor, batch: Batch) -> Tensor:
        return losses.mean()
