"""How good the probe is on scenes that no training batch drew: its heads, its captions, its sense of identity."""

from pathlib import Path

import numpy as np
import torch
from probe_batches import CHANGES, HELD_OUT_NOUNS, LABELS, SKIP, Sprites, change, labels_of
from torch import Tensor

from diffadapt.data.wide_pictures import draw_wide_scenes
from diffadapt.data.wide_scenes import WideWorld, sample_wide_scene, wide_caption
from diffadapt.metrics.probe import Probe

HELD_BACK = 10**9  # training draws from (seed, step), so a "step" that no run reaches


@torch.no_grad()
def picture_embeddings(probe: Probe, pictures: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    parts = [probe.image(part) for part in pictures.split(128)]
    logits = {head: torch.cat([part[0][head] for part in parts]) for head in LABELS}
    return logits, torch.cat([part[1] for part in parts]), torch.cat([part[2] for part in parts])


def measure(probe: Probe, sprites: Sprites, *, count: int, data: Path | None = None) -> dict[str, float]:
    """Shares in [0, 1]: accuracy per head on core scenes, both names of a pair, small things, captions, identity.

    Args:
        count: scenes of the core.
        data: the sprite folders; given, identity is measured on the held-out sprites, which training never showed.
    """
    rng = np.random.default_rng([HELD_BACK, 0])
    world = WideWorld(core=sprites.world.core)
    scenes = [sample_wide_scene(rng, world) for _ in range(count)]
    pictures = torch.cat([draw_wide_scenes(scenes[i : i + 128], sprites.of_world)[0] for i in range(0, count, 128)])
    logits, joint, _ = picture_embeddings(probe, pictures)
    labels = torch.tensor([labels_of(scene) for scene in scenes])  # (N, heads)
    right = {head: (logits[head].argmax(1) == labels[:, i]).float() for i, head in enumerate(LABELS)}
    asked = {head: labels[:, i] != SKIP for i, head in enumerate(LABELS)}
    result = {head: float(right[head][asked[head]].mean()) for head in LABELS}
    pairs = torch.tensor([len(scene.things) == 2 for scene in scenes])
    result["both_objects"] = float((right["object"] * right["second"])[pairs].mean())
    for head, absent in (("colour", "own"), ("wearing", "nothing"), ("count", "1"), ("relation", "none")):
        there = asked[head] & (labels[:, list(LABELS).index(head)] != LABELS[head].index(absent))
        result[f"{head}_where_there_is_one"] = float(right[head][there].mean())
    small = torch.tensor([len(scene.things) == 1 and scene.things[0].size == "small" for scene in scenes])
    result["small_object"] = float(right["object"][small].mean())
    for style in LABELS["style"]:
        its = asked["style"] & (labels[:, list(LABELS).index("style")] == LABELS["style"].index(style))
        result[f"style_{style}"] = float(right["style"][its].mean())
    own = labels[:, list(LABELS).index("colour")] == LABELS["colour"].index("own")
    for name, its in (("own_colours", own), ("another_colour", ~own)):
        result[f"style_in_{name}"] = float(right["style"][asked["style"] & asked["colour"] & its].mean())
    for what in CHANGES:
        found = [(i, no) for i, scene in enumerate(scenes) if (no := change(scene, rng, what)) is not None]
        texts = [(wide_caption(scenes[i]), wide_caption(no)) for i, no in found]
        keep = [k for k, (yes, no) in enumerate(texts) if yes != no]
        with torch.no_grad():
            yes = probe.text(probe.tokenize([texts[k][0] for k in keep]))
            no = probe.text(probe.tokenize([texts[k][1] for k in keep]))
        mine = joint[[found[k][0] for k in keep]]
        result[f"caption_against_wrong_{what}"] = float(((mine * (yes - no)).sum(1) > 0).float().mean())
    if data is not None:
        result |= measure_identity(probe, data)
    return {key: round(value, 4) for key, value in result.items()}


def measure_identity(probe: Probe, data: Path) -> dict[str, float]:
    """Held-out sprites of all base-marked sets: is another scene of the same sprite the nearest among all scenes?"""
    stems = {stem for _, _, stem in HELD_OUT_NOUNS}
    held_out = Sprites(data, stems=stems)
    rng = np.random.default_rng([HELD_BACK, 1])
    chosen = [key for key in held_out.number for _ in range(4)]
    scenes, drawn = held_out.views(rng, chosen)
    pictures = torch.cat([draw_wide_scenes(scenes[i : i + 128], drawn)[0] for i in range(0, len(scenes), 128)])
    _, joint, subject = picture_embeddings(probe, pictures)
    owner = torch.arange(len(held_out.number)).repeat_interleave(4)
    result = {}
    for name, rows in (("subject", subject), ("joint", joint)):
        near = (rows @ rows.T).fill_diagonal_(-2)
        same = (owner[:, None] == owner[None, :]).fill_diagonal_(False)
        different = owner[:, None] != owner[None, :]
        result[f"held_out_identity_top1_{name}"] = float((owner[near.argmax(1)] == owner).float().mean())
        result[f"held_out_same_sprite_cosine_{name}"] = float(near[same].mean())
        result[f"held_out_other_sprite_cosine_{name}"] = float(near[different].mean())
    assert SKIP not in owner
    return result
