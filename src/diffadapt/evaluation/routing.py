"""Routing statistics of StyleInject: the branches chosen for each style, and their information about it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..adapters import Attachment
from ..adapters.style_inject import observed_routes
from ..bases import Base
from ..data.captioned import Captioned
from ..errors import Refused


@torch.no_grad()
def routing_by_style(
    base: Base, attachment: Attachment, reference: Mapping[str, Captioned], *, level: float = 0.5, seed: int = 0
) -> dict[str, Any]:
    """The routers' weights on noised pictures of each style, under their captions.

    Args:
        base: with the attachment on it.
        attachment: of `StyleInject`.
        reference: style -> pictures of it.
        level: where between the first training step (0) and the last (1) they are noised.
        seed: of the noise, the same for every style.

    Returns:
        "weights" {style: [n mean weights over pictures and layers]}; "bits", the mutual information of the first choice
        and the style, averaged over layers, of at most log2 of the number of styles or branches

    Raises:
        Refused: nothing of StyleInject is attached.
    """
    schedule = base.noise_schedule
    step = round(level * (schedule.length - 1))
    routes: dict[str, list[Tensor]] = {}
    for each in reference.values():
        latents = base.encode_pictures(each.pixels(range(len(each)), base.resolution).to(base.device))
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
        timesteps = torch.full((len(latents),), step, device=latents.device)
        with observed_routes(attachment) as seen:
            noisy = schedule.add_noise(latents, noise, timesteps)
            base.denoise(noisy, timesteps, base.condition(each.captions()))
        for path, weights in seen.items():
            routes.setdefault(path, []).append(weights[0].cpu())
    if not routes:
        raise Refused("no router was asked: attach an adapter of StyleInject first")
    weights = {
        style: torch.stack([each[i].mean(0) for each in routes.values()]).mean(0).tolist()
        for i, style in enumerate(reference)
    }
    bits = [information([part.argmax(1) for part in each], len(each[0][0])) for each in routes.values()]
    return {"weights": weights, "bits": sum(bits) / len(bits)}


def information(chosen: list[Tensor], branches: int) -> float:
    """Mutual information in bits of style and choice, every style counting alike.

    Args:
        chosen: of each style, the branch (0 to n - 1) that each of its pictures chose.
        branches: n.
    """
    joint = torch.stack([torch.bincount(each, minlength=branches) / len(each) for each in chosen]) / len(chosen)
    independent = joint.sum(0, keepdim=True) * joint.sum(1, keepdim=True)
    return float((joint * (joint / independent.clamp(min=1e-12)).clamp(min=1e-12).log2()).sum())
