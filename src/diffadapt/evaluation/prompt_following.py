"""Does the picture show what the prompt asked for? Attribute by attribute, where probe and reader know the world."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..data.asked import asked_of
from ..data.scenes import World
from ..metrics.features import ProbeFeatures
from ..metrics.following import followed, look
from ..metrics.reader import RESOLUTION, load_reader
from .figure import figure


def following(
    encoder: ProbeFeatures, after: Tensor, before: Tensor, prompts: Sequence[str], world: World, *, seed: int
) -> dict[str, dict[str, Any]]:
    """ "followed" over all that was asked, and "followed_background", "followed_position", ... by themselves.

    Args:
        encoder: the probe.
        after: (N, 3, H, W) pictures of the subject.
        before: the untouched base's, of the same prompts without its word.
        prompts: N, with the subject's token, in the grammar of the world.
        world: its words.
        seed: of the bootstrap.

    Returns:
        shares of the pictures; {} for pictures that the reader does not know, which are not 64 x 64
    """
    if after.shape[-2:] != (RESOLUTION, RESOLUTION):
        return {}
    reader, asked = load_reader(), [asked_of(prompt, world) for prompt in prompts]
    learned, plainly = (followed(asked, look(pictures, encoder, reader)) for pictures in (after, before))
    values, base = (torch.tensor([bit for bits in each.values() for bit in bits]) for each in (learned, plainly))
    if not len(values):
        return {}
    told = "share of what was asked that is there"
    rows = {"followed": figure(values, base, "higher", told, seed=seed, kind="alignment")}
    for name, bits in learned.items():
        rows[f"followed_{name}"] = figure(
            torch.tensor(bits), torch.tensor(plainly[name]), "higher", f"share of pictures with the {name} asked for",
            seed=seed, kind="other",
        )  # fmt: skip
    return rows
