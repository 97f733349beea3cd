"""The denoising loss on pictures that were not trained on, by noise level, with the same noise for every contender.

Pictures need sampling, which is chaotic: a tiny change moves them. The loss does not: with the noise paired, what two
adapters do to the same noisy picture can be compared a few forward passes later, at each noise level by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..adapters import SideInputs
from ..adapters.hint import SIGNAL
from ..bases import Base
from ..errors import Refused
from .figure import figure

LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # shares of the base's training steps
MOST = 16  # pictures of a set, where there are more to choose from
AT_ONCE = 16  # rows of a forward pass


@torch.no_grad()
def held_out_loss(
    base: Base,
    pictures: Tensor,
    prompts: Sequence[str],
    *,
    signals: Tensor | None = None,
    draws: int = 1,
    seed: int = 0,
) -> Tensor:
    """The squared error of what the base, as it is adapted now, predicts for noisy pictures.

    Args:
        base: with whatever is attached; all of its rows get their own prompt and no guidance.
        pictures: (N, 3, H, W) in [0, 1].
        prompts: N.
        signals: (N, 3, H, W) in [0, 1], the control signal of each picture, where what is attached follows one.
        draws: noises of each picture and level.
        seed: of the noises: the same seed and pictures, the same noise.

    Returns:
        (len(LEVELS), N): mean over the latents and the draws

    Raises:
        Refused: counts that differ, or no pictures.
    """
    counts = {len(pictures), len(prompts), len(pictures if signals is None else signals)}
    if len(counts) > 1 or not len(prompts):
        raise Refused(f"held-out loss: {len(pictures)} pictures, {len(prompts)} prompts; pass a prompt for each")
    latents = torch.cat([base.encode_pictures(part) for part in pictures.split(AT_ONCE)])
    condition, schedule = base.condition(list(prompts)), base.noise_schedule
    if signals is not None:
        condition = replace(condition, control={SIGNAL: signals.to(latents.device)})
    generator = torch.Generator().manual_seed(seed)
    losses = torch.zeros(len(LEVELS), len(prompts))
    for row, level in enumerate(LEVELS):
        timesteps = torch.full((len(prompts),), int(level * (schedule.length - 1)), device=latents.device)
        for _ in range(draws):
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            for rows in torch.arange(len(prompts)).split(AT_ONCE):
                x, e, t, given = latents[rows], noise[rows], timesteps[rows], condition.rows(rows)
                for attachment in base.attachments:
                    if attachment.live:
                        attachment.begin(SideInputs.of(given, timesteps=t))
                whole = base.draws_in is None
                with torch.autocast(base.device.type, dtype=base.draws_in, enabled=not whole, cache_enabled=whole):
                    predicted = base.denoise(schedule.add_noise(x, e, t), t, given).float()
                error = predicted - schedule.target(x, e, t)
                losses[row, rows] += error.square().mean((1, 2, 3)).cpu() / draws
    return losses


class LossSet(NamedTuple):
    """Pictures that a loss is told of, before and after a training.

    Args:
        pictures: (N, 3, H, W) in [0, 1].
        prompts: N.
        meaning: what they are, in words behind "rise of the denoising loss".
        kind: what the rise of the loss on them is about, as a figure's kind: "drift" where it is forgetting.
        signals: (N, 3, H, W) in [0, 1], their control signals, if any.
    """

    pictures: Tensor
    prompts: Sequence[str]
    meaning: str
    kind: str = "drift"
    signals: Tensor | None = None


def losses(base: Base, sets: Mapping[str, LossSet], *, seed: int) -> dict[str, Tensor]:
    """Set -> (levels, N) denoising loss of the base as it is adapted now; the same seed, the same noise of each set."""
    return {
        name: held_out_loss(base, each.pictures, each.prompts, signals=each.signals, seed=seed)
        for name, each in sets.items()
    }


def loss_figures(
    sets: Mapping[str, LossSet], after: Mapping[str, Tensor], before: Mapping[str, Tensor], *, seed: int
) -> dict[str, dict[str, Any]]:
    """By how much the loss of each set rose, over all levels, as `loss_NAME`; below 0 it was learned, above forgotten.

    Args:
        sets: name -> pictures.
        after, before: their `losses` with and without the adapter.
        seed: of the bootstrap, which draws pictures.
    """
    return {
        f"loss_{name}": figure(
            (after[name] - before[name]).mean(0), None, "lower", f"rise of the denoising loss {each.meaning}, same "
            "noise", seed=seed, kind=each.kind,
        )
        for name, each in sets.items()
    }  # fmt: skip


def loss_by_level(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[str, dict[str, list[float]]]:
    """Set -> {"levels", "adapted", "base"}: the mean loss of its pictures at each noise level, for `metrics.json`."""
    return {
        name: {"levels": list(LEVELS), "adapted": after[name].mean(1).tolist(), "base": each.mean(1).tolist()}
        for name, each in before.items()
    }
