"""How a base mixes data with noise, and what it predicts: one small class for each parametrisation.

    x_t = alpha_t x_0 + sigma_t e

    preserving    alpha = sqrt(a_t), sigma = sqrt(1 - a_t), a_t = alphas_cumprod[t]
    straight      alpha = 1 - s, sigma = s, s = t / T

The first keeps the variance (Ho et al. 2020, arXiv:2006.11239), the second is that of flow matching (Lipman et al.
2022, arXiv:2210.02747). What is predicted p, and what x_0 and e follow from p and x_t:

    epsilon    p = e
    v          p = alpha e - sigma x_0                         (Salimans & Ho 2022, arXiv:2202.00512, appendix D)
    sample     p = x_0
    flow       p = e - x_0

Min-SNR (Hang et al. 2023, arXiv:2303.09556) weighs the loss of x_0 by min(SNR, gamma), SNR = alpha^2 / sigma^2; each
parametrisation states that weight in its own loss.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from .errors import Refused


class Parametrisation(ABC):
    """The quantity a denoiser predicts. All tensors are (N, C, h, w); alpha and sigma are (N, 1, 1, 1)."""

    name: ClassVar[str]
    straight: ClassVar[bool] = False  # whether x_t moves on the straight line from data to noise

    @abstractmethod
    def target(self, sample: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """p for clean latents x_0 and noise e."""

    @abstractmethod
    def sample(self, prediction: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """x_0 for a prediction at x_t."""

    @abstractmethod
    def noise(self, prediction: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """e for a prediction at x_t."""

    @abstractmethod
    def min_snr(self, snr: Tensor, gamma: float) -> Tensor:
        """The loss's Min-SNR weight at signal-to-noise ratios (N,)."""


class Epsilon(Parametrisation):
    """The noise itself. x_0 cannot be told from it where alpha is 0."""

    name: ClassVar[str] = "epsilon"

    def target(self, sample: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return noise

    def sample(self, prediction: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (noisy - sigma * prediction) / alpha

    def noise(self, prediction: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return prediction

    def min_snr(self, snr: Tensor, gamma: float) -> Tensor:
        return snr.clamp(max=gamma) / snr.clamp(min=1e-12)


class V(Parametrisation):
    """The velocity along the circle of a variance-preserving schedule."""

    name: ClassVar[str] = "v_prediction"

    def target(self, sample: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * noise - sigma * sample

    def sample(self, prediction: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha * noisy - sigma * prediction) / (alpha.square() + sigma.square())

    def noise(self, prediction: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (sigma * noisy + alpha * prediction) / (alpha.square() + sigma.square())

    def min_snr(self, snr: Tensor, gamma: float) -> Tensor:
        return snr.clamp(max=gamma) / (snr + 1)


class Sample(Parametrisation):
    """The clean latents. The noise cannot be told from them where sigma is 0."""

    name: ClassVar[str] = "sample"

    def target(self, sample: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return sample

    def sample(self, prediction: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return prediction

    def noise(self, prediction: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (noisy - alpha * prediction) / sigma

    def min_snr(self, snr: Tensor, gamma: float) -> Tensor:
        return snr.clamp(max=gamma)


class Flow(Parametrisation):
    """The velocity of the straight line from data to noise; its loss is not weighted."""

    name: ClassVar[str] = "flow"
    straight: ClassVar[bool] = True

    def target(self, sample: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return noise - sample

    def sample(self, prediction: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (noisy - sigma * prediction) / (alpha + sigma)

    def noise(self, prediction: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (noisy + alpha * prediction) / (alpha + sigma)

    def min_snr(self, snr: Tensor, gamma: float) -> Tensor:
        return torch.ones_like(snr)


PARAMETRISATIONS: dict[str, Parametrisation] = {each.name: each for each in (Epsilon(), V(), Sample(), Flow())}


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """How a base mixes data with noise at T training steps, and what it predicts.

    Args:
        alphas_cumprod: (T,) share of signal power at each training step; for flow only its length counts.
        prediction_type: "epsilon", "v_prediction", "sample" or "flow".

    Attributes:
        parametrisation: the class of the prediction type.
    """

    alphas_cumprod: Tensor
    prediction_type: str
    parametrisation: Parametrisation = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.prediction_type not in PARAMETRISATIONS:
            raise Refused(f"prediction type {self.prediction_type!r}; expected {', '.join(PARAMETRISATIONS)}")
        object.__setattr__(self, "parametrisation", PARAMETRISATIONS[self.prediction_type])

    @property
    def length(self) -> int:
        """T, the number of training steps."""
        return len(self.alphas_cumprod)

    def levels(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma), each (N, 1, 1, 1) in the dtype and on the device of `like`, at timesteps (N,) in 0..T-1."""
        if self.parametrisation.straight:
            s = (timesteps.to(like) / self.length)[:, None, None, None]
            return 1 - s, s
        a = self.alphas_cumprod.to(like.device)[timesteps].to(like.dtype)[:, None, None, None]
        return a.sqrt(), (1 - a).sqrt()

    def noise_ratio(self) -> Tensor:
        """(T,) float64 sigma / alpha of each training step, increasing; inf where nothing of the data is left."""
        if self.parametrisation.straight:
            s = torch.arange(self.length, dtype=torch.float64) / self.length
            return s / (1 - s)
        a = self.alphas_cumprod.double()
        return ((1 - a) / a).sqrt()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t for latents and noise (N, C, h, w) at timesteps (N,) in 0..T-1."""
        alpha, sigma = self.levels(timesteps, latents)
        return alpha * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The regression target of the base, (N, C, h, w)."""
        return self.parametrisation.target(latents, noise, *self.levels(timesteps, latents))

    def sample(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """The clean latents (N, C, h, w) that a prediction at x_t stands for."""
        return self.parametrisation.sample(prediction, noisy, *self.levels(timesteps, noisy))

    def convert(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor, *, to: str) -> Tensor:
        """A prediction at x_t as a base of another prediction type would have made it.

        Raises:
            Refused: an unknown prediction type.
        """
        if to not in PARAMETRISATIONS:
            raise Refused(f"prediction type {to!r}; expected {', '.join(PARAMETRISATIONS)}")
        alpha, sigma = self.levels(timesteps, noisy)
        sample = self.parametrisation.sample(prediction, noisy, alpha, sigma)
        noise = self.parametrisation.noise(prediction, noisy, alpha, sigma)
        return PARAMETRISATIONS[to].target(sample, noise, alpha, sigma)

    def weight(self, timesteps: Tensor, gamma: float) -> Tensor:
        """Min-SNR loss weights (N,); gamma 0 means no weighting."""
        if gamma == 0 or self.parametrisation.straight:
            return torch.ones(len(timesteps), device=timesteps.device)
        a = self.alphas_cumprod.cpu().double()[timesteps.cpu()]  # on the CPU, since not every GPU has float64
        snr = a / (1 - a).clamp(min=1e-12)
        return self.parametrisation.min_snr(snr, gamma).float().to(timesteps.device)
