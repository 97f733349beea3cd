"""The denoising objective: epsilon, v and flow matching on one interface, with Min-SNR weights.

epsilon, v:  x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e       a_t = alphas_cumprod[t]
             epsilon target  e                           (Ho et al. 2020, arXiv:2006.11239, eq. 14)
             v target        sqrt(a_t) e - sqrt(1 - a_t) x_0   (Salimans & Ho 2022, arXiv:2202.00512, appendix D)
flow:        x_t = (1 - s) x_0 + s e, s = t / T;  target e - x_0   (Lipman et al. 2022, arXiv:2210.02747)
Min-SNR:     weight min(SNR, gamma) / SNR for epsilon, min(SNR, gamma) / (SNR + 1) for v
             (Hang et al. 2023, arXiv:2303.09556)
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import Refused

Denoiser = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(noisy (N, C, h, w), timesteps (N,), text (N, L, D)) -> prediction (N, C, h, w)"""


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


def denoising_loss(
    denoise: Denoiser,
    schedule: NoiseSchedule,
    latents: Tensor,
    text: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    *,
    snr_gamma: float = 0.0,
    mask: Tensor | None = None,
) -> Tensor:
    """The denoising loss of each row.

    Args:
        denoise: the (adapted) base.
        latents, noise: (N, C, h, w); text: (N, L, D); timesteps: (N,) in 0..T-1.
        snr_gamma: Min-SNR gamma, 0 for none; 5 is usual.
        mask: (N, 1, h, w) non-negative weights of places, or None. Each is normalised to mean 1, so that the size
            of the masked region does not change the loss's scale.

    Returns:
        (N,) float32
    """
    noisy = schedule.add_noise(latents, noise, timesteps)
    prediction = denoise(noisy, timesteps, text).float()
    error = (prediction - schedule.target(latents, noise, timesteps).float()).square()
    if mask is not None:
        error = error * (mask / mask.mean((1, 2, 3), keepdim=True).clamp(min=1e-6))
    return error.mean((1, 2, 3)) * schedule.weight(timesteps, snr_gamma)
