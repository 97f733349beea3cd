"""What is asked of an adapted base: losses over (denoiser, batch)."""

from .denoising import NoiseSchedule, denoising_loss

__all__ = ["NoiseSchedule", "denoising_loss"]
