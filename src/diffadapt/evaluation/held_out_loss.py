"""The denoising loss on pictures that were not trained on, by noise level, with the same noise for every contender.

Pictures need sampling, which is chaotic: a tiny change moves them. The loss does not: with the noise paired, what two
adapters do to the same noisy picture can be compared a few forward passes later, at each noise level by itself.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..adapters import SideInputs
from ..bases import Base
from ..errors import Refused

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # shares of the base's training steps


@torch.no_grad()
def held_out_loss(base: Base, pictures: Tensor, prompts: Sequence[str], *, draws: int = 1, seed: int = 0) -> Tensor:
    """The squared error of what the base, as it is adapted now, predicts for noisy pictures.

    Args:
        base: with whatever is attached; all of its rows get their own prompt and no guidance.
        pictures: (N, 3, H, W) in [0, 1].
        prompts: N.
        draws: noises of each picture and level.
        seed: of the noises: the same seed and pictures, the same noise.

    Returns:
        (len(LEVELS), N): mean over the latents and the draws

    Raises:
        Refused: counts that differ, or no pictures.
    """
    if len(pictures) != len(prompts) or not len(prompts):
        raise Refused(f"held-out loss: {len(pictures)} pictures, {len(prompts)} prompts; pass a prompt for each")
    latents = base.encode_pictures(pictures)
    condition, schedule = base.condition(list(prompts)), base.noise_schedule
    generator = torch.Generator().manual_seed(seed)
    losses = torch.zeros(len(LEVELS), len(prompts))
    for row, level in enumerate(LEVELS):
        timesteps = torch.full((len(prompts),), int(level * (schedule.length - 1)), device=latents.device)
        for _ in range(draws):
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            side = SideInputs.of(condition, timesteps=timesteps)
            for attachment in base.attachments:
                attachment.begin(side)
            predicted = base.denoise(schedule.add_noise(latents, noise, timesteps), timesteps, condition)
            error = predicted.float() - schedule.target(latents, noise, timesteps)
            losses[row] += error.square().mean((1, 2, 3)).cpu() / draws
    return losses
