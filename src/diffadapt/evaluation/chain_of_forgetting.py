"""Where an adapted base forgot: the analyses of Diff-Tuning (Zhong et al. 2024, arXiv:2406.00773, sections 3.1, 4.4).

The loss by noise level on the base's own pictures (what rose was forgotten) and on the target's; the switch-model
curve, for which the untouched base does the last steps of the sampling; how far the weights moved, adapters merged.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..adapters import Attachment, SideInputs
from ..bases import Base
from ..data.prompts import drift_prompts, spread
from ..data.wide_scenes import world_of
from ..errors import Refused
from ..metrics.features import Features
from ..metrics.frechet import fid
from ..progress import Steps
from ..sampling.sample import adapted, default_line, generate
from .geometry import weight_distance

NEAR_DATA = 0.3  # noise-level quantile below which a level is near the data
BINS = 10
SHARES = (0.0, 0.1, 0.2, 0.5, 1.0)
OWN, OWN_SEED = 32, 1_000_000  # the base's own pictures, from seeds that no memory begins with


def chain_of_forgetting(
    base: Base,
    adapters: Sequence[tuple[str | Path | Attachment, float]],
    target: Tensor,
    captions: Sequence[str],
    encoder: Features | None = None,
    *,
    switched: int = 0,
    seed: int = 0,
    quiet: bool,
) -> dict[str, Any]:
    """All of it, as entries for a run's `metrics.json`.

    Args:
        base: without attachments.
        adapters: (file or attachment, strength) pairs.
        target: (N, 3, H, W) in [0, 1], pictures of the target that were not trained on.
        captions: what the pictures of the switch-model curve are asked for, in turn.
        encoder: of that curve's Frechet distance.
        switched: pictures of each of its points; 0 leaves the curve out.
        seed: of noises and pictures.
        quiet: show no progress.

    Returns:
        "levels": (BINS,) quantiles of the noise level; "source" and "target": {"base", "adapted"} losses at them under
        the null condition; "weight_distance"; with `switched` "switch_curve": [share, Frechet distance] pairs
    """
    curve = len(SHARES) * switched if encoder is not None else 0
    total = OWN + 4 * BINS + curve  # pictures, and noise levels, which take about as long
    with Steps("where it forgot", total, quiet=quiet) as bar:

        def losses_of(latents: Tensor) -> list[float]:
            losses = loss_by_noise(base, latents, seed=seed)
            bar.advance(by=BINS)
            return [round(value, 6) for value in losses.tolist()]

        own = own_latents(base, seed=seed, bar=bar)
        sets = {"source": own, "target": base.encode_pictures(target[:OWN])}
        found: dict[str, Any] = {"levels": [(i + 0.5) / BINS for i in range(BINS)]}
        losses = {name: {"base": losses_of(latents)} for name, latents in sets.items()}
        with adapted(base, adapters) as attached:
            for name, latents in sets.items():
                losses[name]["adapted"] = losses_of(latents)
            found |= {**losses, "weight_distance": weight_distance(attached)}
            if switched and encoder is not None:
                asked = [captions[i % len(captions)] for i in range(switched)]
                reference = encoder.pictures(target)
                found["switch_curve"] = switch_curve(base, asked, reference, encoder, seed=seed, bar=bar)
    return found


def switch_curve(
    base: Base,
    prompts: Sequence[str],
    reference: Tensor,
    encoder: Features,
    *,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    steps: int | None = None,
    batch: int = 16,
    bar: Steps | None = None,
) -> list[list[float]]:
    """Frechet distance of pictures whose last steps the untouched base does, from the same noise at every share.

    Args:
        base: with what is attached.
        prompts: one picture each; 2 or more.
        reference: (M, D) features of the target's pictures.
        encoder: that made them.
        shares: of the last steps, from 0, the adapted base, to 1, the untouched one.
        seed: picture i starts from seed + i.
        steps: of the sampling; None means the base's default.
        bar: advanced by every picture.

    Returns:
        [share, distance] pairs
    """
    lines = [default_line(base, prompt, seed + i, steps=steps) for i, prompt in enumerate(prompts)]
    curve = []
    for share in shares:
        made = torch.stack(generate(base, lines, batch=batch, hand_back=share, bar=bar))
        curve.append([share, round(fid(encoder.pictures(made), reference), 5)])
    return curve


def own_latents(base: Base, count: int = OWN, *, seed: int = 0, batch: int = 16, bar: Steps | None = None) -> Tensor:
    """(count, C, h, w) latents of pictures that the untouched base makes now, of its world or its classes."""
    if any(attachment.live for attachment in base.attachments):
        raise Refused("the base's own pictures are made without an adapter, and one is on; switch it off or detach it")
    prompts = spread(base.own_classes, count) or drift_prompts(world_of(base), count, seed)
    lines = [default_line(base, prompts[i % len(prompts)], OWN_SEED + seed + i) for i in range(count)]
    return base.encode_pictures(torch.stack(generate(base, lines, batch=batch, bar=bar)))


def loss_by_noise(base: Base, latents: Tensor, *, bins: int = BINS, seed: int = 0) -> Tensor:
    """The loss in each of equal shares of the noise levels, under the null condition, with whatever is attached.

    Args:
        base: as it is adapted now.
        latents: (N, C, h, w), each taken once in each bin.
        bins: of the quantile of the noise level, from the data on.
        seed: of the noise; the same noise for every base that is asked.

    Returns:
        (bins,) float32
    """
    ordered, count = base.noise_schedule.noise_ratio().cpu().argsort(), len(latents)
    within = (torch.arange(count) + 0.5) / count
    places = ((torch.arange(bins)[:, None] + within) / bins * len(ordered)).long()
    return torch.stack([losses_at(base, latents, ordered[row], seed=seed + i).mean() for i, row in enumerate(places)])


def near_data(ratio: Tensor, count: int) -> Tensor:
    """(count,) training steps spread over the `NEAR_DATA` share of them with the least noise.

    Args:
        ratio: (T,) noise ratio of every training step.
    """
    ordered = ratio.argsort()
    return ordered[torch.linspace(0, NEAR_DATA * len(ordered) - 1, count).long()]


@torch.no_grad()
def losses_at(base: Base, latents: Tensor, steps: Tensor, *, caption: str = "", seed: int = 0) -> Tensor:
    """Squared errors of what the base predicts, with whatever is attached and on.

    Args:
        latents: (N, C, h, w).
        steps: (N,) training steps.
        caption: what all rows are conditioned on; "" for nothing.
        seed: of the noise.

    Returns:
        (N,) float32 on the CPU
    """
    schedule, found = base.noise_schedule, []
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal(tuple(latents.shape), dtype=np.float32))
    for start in range(0, len(latents), 8):
        x, e, t = (tensor[start : start + 8].to(base.device) for tensor in (latents, noise, steps))
        condition = base.condition([caption] * len(x))
        for attachment in base.attachments:
            if attachment.live:
                attachment.begin(SideInputs.of(condition, timesteps=t))
        prediction = base.denoise(schedule.add_noise(x, e, t), t, condition).float()
        found.append((prediction - schedule.target(x, e, t)).square().mean((1, 2, 3)).cpu())
    return torch.cat(found)
