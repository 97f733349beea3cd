"""The denoising objective: the squared error of a base's own prediction, with Min-SNR weights.

The arithmetic of noise levels and parametrisations is in `noise_schedule`.
"""

import numpy as np
from torch import Tensor

from ..noise_schedule import NoiseSchedule
from .objective import Batch, Draw, Model, Objective, spread_timesteps
from .variational_bound import variational_bound


class Denoising(Objective):
    """Predicts what was mixed with the picture: the squared error, averaged over places and rows.

    Args:
        schedule: how the base mixes data with noise, and what it predicts.
        snr_gamma: Min-SNR gamma of the rows' weights, 0 for none; 5 is usual.
        learned_variance: adds the bound on a base's own variance to each row's loss (`variational_bound`).
    """

    def __init__(self, schedule: NoiseSchedule, *, snr_gamma: float = 0.0, learned_variance: bool = False) -> None:
        self.schedule, self.snr_gamma, self.learned_variance = schedule, snr_gamma, learned_variance

    def draw(self, rng: np.random.Generator, batch_size: int) -> Draw:
        return Draw(spread_timesteps(rng, batch_size, self.schedule.length), ("target",) * batch_size)

    def losses(self, model: Model, batch: Batch) -> Tensor:
        noisy = self.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        if self.learned_variance:
            prediction, variance = model.with_variance(noisy, batch.timesteps, batch.condition)
            bound = variational_bound(
                self.schedule.alphas_cumprod, batch.latents, noisy, batch.timesteps, prediction.float(), variance
            )
        else:
            prediction, bound = model(noisy, batch.timesteps, batch.condition), 0.0
        error = self.weighed((prediction.float() - self.target(model, noisy, batch).float()).square(), batch)
        return error.mean((1, 2, 3)) * self.schedule.weight(batch.timesteps, self.snr_gamma) + bound

    def weighed(self, error: Tensor, batch: Batch) -> Tensor:
        """The squared error (N, C, h, w) float32 as its places count."""
        return error

    def target(self, model: Model, noisy: Tensor, batch: Batch) -> Tensor:
        """The regression target of the noised rows, (N, C, h, w)."""
        return self.schedule.target(batch.latents, batch.noise, batch.timesteps)

    def reduce(self, losses: Tensor, batch: Batch) -> Tensor:
        return losses.mean()
