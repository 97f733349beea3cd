"""Does the picture show what the prompt asked for? Attribute by attribute, where probe and reader know the world.

Neither reads perfectly, and a subject may be hard to read: so beside each figure stands what perfect renderings of the
same prompts reach, the subject cut out of its own pictures and drawn as asked (`data.rendered`). What cannot be drawn
without other sprites (another noun, another artist's style, what is worn) stands beside the probe's accuracy on
rendered scenes instead, as its card has it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..bases import Base
from ..data.asked import asked_of
from ..data.concept import Concept
from ..data.rendered import DRAWN, cut_out, rendered
from ..data.scenes import World
from ..data.wide_scenes import WideWorld
from ..metrics.features import ProbeFeatures
from ..metrics.following import followed, look
from ..metrics.reader import RESOLUTION, load_reader
from .figure import figure

# attribute -> its accuracy; two copies of the subject, as a rendering has them, are a number and no relation to a head
CARD = {
    "second": "second",
    "style": "style",
    "wearing": "wearing_where_there_is_one",
    "relation": "relation_where_there_is_one",
}


def following(
    encoder: ProbeFeatures,
    after: Tensor,
    before: Tensor,
    prompts: Sequence[str],
    world: World | WideWorld,
    *,
    seed: int,
    groups: Tensor | None = None,
    perfect: Tensor | None = None,
) -> dict[str, dict[str, Any]]:
    """ "followed" over all that was asked, and "followed_background", "followed_position", ... by themselves.

    Args:
        encoder: the probe.
        after: (N, 3, H, W) pictures of the subject.
        before: the untouched base's, of the same prompts without its word.
        prompts: N, with the subject's token, in the grammar of the world.
        world: its words.
        seed: of the bootstrap.
        groups: (N,) which pictures go together, those of one prompt; None takes each for itself.
        perfect: (N, 3, 64, 64) perfect renderings of the prompts, as `perfect_pictures` makes them.

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
    best = reachable(encoder, followed(asked, look(perfect, encoder, reader))) if perfect is not None else {}
    known = {name: best[name] for name in learned if name in best}
    whole = sum(best[name] * len(learned[name]) for name in known) / len(values) if len(known) == len(learned) else None
    together = torch.arange(len(prompts)) if groups is None else groups
    of = {name: together[[i for i, wanted in enumerate(asked) if name in wanted]] for name in learned}
    meaning = "share of what was asked that is there"
    rows = {
        "followed": figure(
            values, base, "higher", meaning, seed=seed, groups=torch.cat([*of.values()]), kind="alignment",
            perfect=whole,
        )
    }  # fmt: skip
    for name, bits in learned.items():
        rows[f"followed_{name}"] = figure(
            torch.tensor(bits), torch.tensor(plainly[name]), "higher", f"share of pictures with the {name} asked for",
            seed=seed, groups=of[name], kind="other", perfect=known.get(name),
        )  # fmt: skip
    return rows


def reachable(encoder: ProbeFeatures, scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Attribute -> share of perfect renderings in which it is read, or the card's accuracy where none can be drawn."""
    found = {name: sum(bits) / len(bits) for name, bits in scores.items() if name in DRAWN}
    card = encoder.probe.accuracy
    return found | {name: card[CARD[name]] for name in scores if name in CARD and CARD[name] in card}


def drawable(asked: Mapping[str, str]) -> bool:
    """Whether a rendering of it lacks nothing, so that its likeness to prompt and subject can be compared."""
    return set(asked) <= set(DRAWN) - {"relation"}


def perfect_pictures(
    base: Base, concept: Concept, prompts: Sequence[str], world: World | WideWorld, *, seed: int
) -> Tensor | None:
    """A perfect rendering (N, 3, 64, 64) of each prompt, with the look of the base's decoded pictures.

    Args:
        base: of 64 x 64 pixels.
        concept: whose subject is cut out by its mask, or by the reader's where it has none.
        prompts: in the grammar of the world.
        world: its words.
        seed: of the jitter.

    Returns:
        None where no subject is to be seen in its pictures, or the base has another size
    """
    if base.resolution != RESOLUTION:
        return None
    pictures, masks = concept.pixels(RESOLUTION).cpu(), concept.masks(RESOLUTION)
    if masks is None:
        masks = (load_reader().read(pictures).layers > 0).float()[:, None]
    seen = [int((mask >= 0.5).sum()) for mask in masks]
    # a whole picture is no cut-out: a mask of ones stands for a picture without a mask
    usable = [i for i, pixels in enumerate(seen) if 0 < pixels < RESOLUTION * RESOLUTION]
    if not usable:
        return None
    largest = max(usable, key=lambda i: seen[i])
    sprite, rng = cut_out(pictures[largest], masks[largest][0].cpu()), np.random.default_rng(seed)
    drawn = torch.stack([rendered(asked_of(prompt, world), sprite, rng) for prompt in prompts])
    parts = [base.decode_latents(base.encode_pictures(part)) for part in drawn.to(base.device).split(32)]
    return torch.cat(parts).float().cpu().clamp(0, 1)
