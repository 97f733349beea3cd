"""The denoising objective: epsilon, v and flow matching on one interface, with Min-SNR weights.

epsilon, v:  x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e       a_t = alphas_cumprod[t]
             epsilon target  e                           (Ho et al. 2020, arXiv:2006.11239, eq. 14)
             v target        sqrt(a_t) e - sqrt(1 - a_t) x_0   (Salimans & Ho 2022, arXiv:2202.00512, appendix D)
flow:        x_t = (1 - s) x_0 + s e, s = t / T;  target e - x_0   (Lipman et al. 2022, arXiv:2210.02747)
Min-SNR:     weight min(SNR, gamma) / SNR for epsilon, min(SNR, gamma) / (SNR + 1) for v
             (Hang et al. 2023, arXiv:2303.09556)
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import Refused
from .objective import Batch, Draw, Model, Objective, spread_timesteps


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """How a base mixes data with noise, and what it predicts.

    Args:
        alphas_cumprod: (T,) share of signal power at each training step; for flow only its length counts.
        prediction_type: "epsilon", "v_prediction" or "flow".
    """

    alphas_cumprod: Tensor
    prediction_type: str

    def __post_init__(self) -> None:
        if self.prediction_type not in ("epsilon", "v_prediction", "flow"):
            raise Refused(f"prediction type {self.prediction_type!r}; expected epsilon, v_prediction or flow")

    @property
    def length(self) -> int:
        """T, the number of training steps."""
        return len(self.alphas_cumprod)

    def _alpha(self, timesteps: Tensor, like: Tensor) -> Tensor:
        return self.alphas_cumprod.to(like.device)[timesteps].to(like.dtype)[:, None, None, None]

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t for latents and noise (N, C, h, w) at timesteps (N,) in 0..T-1."""
        if self.prediction_type == "flow":
            s = (timesteps.to(latents) / self.length)[:, None, None, None]
            return (1 - s) * latents + s * noise
        a = self._alpha(timesteps, latents)
        return a.sqrt() * latents + (1 - a).sqrt() * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the base is asked to predict, (N, C, h, w)."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "flow":
            return noise - latents
        a = self._alpha(timesteps, latents)
        return a.sqrt() * noise - (1 - a).sqrt() * latents

    def weight(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Min-SNR loss weights (N,); gamma 0 means no weighting. Flow matching is not weighted."""
        if gamma == 0 or self.prediction_type == "flow":
            return torch.ones(len(timesteps), device=timesteps.device)
        a = self.alphas_cumprod.to(timesteps.device)[timesteps].double()
        snr = a / (1 - a).clamp(min=1e-12)
        floor = snr + 1 if self.prediction_type == "v_prediction" else snr.clamp(min=1e-12)
        return (snr.clamp(max=gamma) / floor).float()


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
        return (prediction - self.schedule.target(batch.latents, batch.noise, batch.timesteps).float()).square()

    def reduce(self, losses: Tensor, batch: Batch) -> Tensor:
        return losses.mean()
