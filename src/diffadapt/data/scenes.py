"""Scenes of the embedded base: sprites composed on a background, with the caption, masks and boxes known.

A `World` says what may appear. `sample_scene` draws a `Scene` (what, where, how large, in which style, on what),
`caption` puts it into words, and `render` composes a batch of scenes into pictures on any device. Evaluation uses
the same functions as the training of the base, so ground truth is exact.

    world = World()
    sprites = load_sprites("emoji", world)
    scene = sample_scene(np.random.default_rng(0), world)
    pictures, masks = render([scene], sprites)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..errors import Refused
from .world import BACKGROUNDS, HELD_OUT_NOUNS, HELD_OUT_STYLES, NOUNS, POSITIONS, SIZES, STYLES

T = TypeVar("T")
RESOLUTION = 64
SPRITE = 72  # side of a stored sprite, in pixels
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of a 64x64 picture
KIND_OF = {noun: kind for noun, kind, _ in NOUNS + HELD_OUT_NOUNS}
STEM_OF = {noun: stem for noun, _, stem in NOUNS + HELD_OUT_NOUNS}
FOLDER_OF = dict(STYLES + HELD_OUT_STYLES)


@dataclass(frozen=True, kw_only=True)
class World:
    """The vocabulary of scenes. The default is the full world; a base states its own in its model card.

    Args:
        nouns: names out of `world.NOUNS` and `world.HELD_OUT_NOUNS`.
        styles: style words, for example ("flat", "3d").
        backgrounds: background words.
    """

    nouns: tuple[str, ...] = tuple(noun for noun, _, _ in NOUNS)
    styles: tuple[str, ...] = tuple(style for style, _ in STYLES)
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)

    def __post_init__(self) -> None:
        for kind, given, known in (
            ("noun", self.nouns, KIND_OF),
            ("style", self.styles, FOLDER_OF),
            ("background", self.backgrounds, BACKGROUNDS),
        ):
            unknown = [word for word in given if word not in known]
            if unknown or not given:
                raise Refused(f"World: unknown {kind} {unknown or given!r}; known: {', '.join(known)}")


def plain_world_of(base: Any) -> World:
    """What plain scenes of a base's world are made of; the full world for a base of general vocabulary."""
    words = base.world or {}
    return World(**{key: tuple(words[key]) for key in ("nouns", "styles", "backgrounds") if key in words})


@dataclass(frozen=True, kw_only=True)
class Placed:
    """One object in a scene: its noun, style, size and position word, and its box in pixels of a 64x64 picture."""

    noun: str
    style: str
    size: str
    position: str
    box: Box


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Objects back to front on a background. `relation` is "next to" or "above" when there are two objects."""

    objects: tuple[Placed, ...]
    background: str
    relation: str | None = None
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)  # added to the background colour, in 255ths


def load_sprites(folder: str | Path, world: World) -> dict[tuple[str, str], Tensor]:
    """Reads every sprite of a world from `folder/<style folder>/<stem>.png`.

    Returns:
        {(noun, style): float tensor (4, 72, 72), RGBA in [0, 1], colour multiplied by alpha}

    Raises:
        Refused: when a sprite is missing; names the file.
    """
    return {
        (noun, style): load_sprite(Path(folder) / FOLDER_OF[style] / f"{STEM_OF[noun]}.png")
        for noun in world.nouns
        for style in world.styles
    }


def load_sprite(path: str | Path) -> Tensor:
    """Reads one RGBA picture as a sprite, (4, 72, 72) in [0, 1], colour multiplied by alpha."""
    if not Path(path).is_file():
        raise Refused(f"no sprite at {path}; expected one folder per style with a PNG per noun, as load_sprites says")
    picture = Image.open(path).convert("RGBA")
    rgba = torch.from_numpy(np.asarray(picture, dtype=np.float32).copy()).permute(2, 0, 1) / 255
    rgba = torch.cat([rgba[:3] * rgba[3:], rgba[3:]])
    if rgba.shape[1:] != (SPRITE, SPRITE):
        rgba = F.interpolate(rgba[None], (SPRITE, SPRITE), mode="area")[0]
    return rgba


def sample_scene(rng: np.random.Generator, world: World, *, two_objects: float = 0.2) -> Scene:
    """Sample a random scene. `two_objects` is the share of scenes with two objects, in [0, 1]."""
    background = world.backgrounds[rng.integers(len(world.backgrounds))]
    red, green, blue = (float(v) for v in rng.uniform(-8, 8, 3))
    tint = (red, green, blue)
    if rng.random() < two_objects and len(world.nouns) > 1:
        first, second = (world.nouns[i] for i in rng.choice(len(world.nouns), 2, replace=False))
        style = choose(rng, world.styles)
        other = style if rng.random() < 0.7 else choose(rng, world.styles)
        relation = "next to" if rng.random() < 0.7 else "above"
        dx, dy = (15.5, 0.0) if relation == "next to" else (0.0, 15.5)
        objects = []
        for noun, its_style, sign in ((first, style, -1), (second, other, 1)):
            side = int(rng.integers(26, 31))
            x = 32 + sign * dx + rng.uniform(-1.5, 1.5)
            y = 32 + sign * dy + rng.uniform(-1.5, 1.5)
            box = square(x, y, side)
            objects.append(Placed(noun=noun, style=its_style, size="small", position="center", box=box))
        return Scene(objects=tuple(objects), background=background, relation=relation, tint=tint)
    noun, style = choose(rng, world.nouns), choose(rng, world.styles)
    size = ("small", "medium", "large")[rng.choice(3, p=(0.2, 0.45, 0.35))]
    position = "center"
    if size != "large" and rng.random() < 0.6:
        position = choose(rng, ("left", "right", "top", "bottom"))
    return Scene(objects=(place(rng, noun, style, size, position),), background=background, tint=tint)


def place(rng: np.random.Generator, noun: str, style: str, size: str, position: str) -> Placed:
    """Place one object by its size and position words, with a little jitter."""
    return Placed(noun=noun, style=style, size=size, position=position, box=box_at(rng, size, position))


def box_at(rng: np.random.Generator, size: str, position: str) -> Box:
    """A box where the size and position words say, with a little jitter."""
    low, high = SIZES[size]
    side = int(rng.integers(low, high + 1))
    _, right, down = POSITIONS[position]
    reach = (RESOLUTION - side) / 2 - 2  # from the centre to two pixels off the edge
    x = 32 + right * reach + rng.uniform(-1.5, 1.5)
    y = 32 + down * reach + rng.uniform(-1.5, 1.5)
    return square(x, y, side)


def square(x: float, y: float, side: float) -> Box:
    """The box of a side around a point."""
    return (x - side / 2, y - side / 2, x + side / 2, y + side / 2)


def caption(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """Caption of a scene: "a small 3d cat on the left on a red background".

    Without `rng` every attribute is named. With it, each is sometimes left out and a noun is sometimes replaced by
    its kind ("animal"), so that short prompts and class nouns work.
    """

    def say(probability: float) -> bool:
        return rng is None or rng.random() < probability

    phrases = []
    for thing in scene.objects:
        words = []
        if scene.relation is None and thing.size != "medium" and say(0.8):
            words.append(thing.size)
        if say(0.85):
            words.append(thing.style)
        words.append(thing.noun if say(0.85) else KIND_OF[thing.noun])
        phrases.append(("an " if words[0][0] in "aeiou" else "a ") + " ".join(words))
    text = f" {scene.relation} ".join(phrases)
    if scene.relation is None:
        position = scene.objects[0].position
        if (position != "center" and say(0.75)) or (position == "center" and rng is not None and rng.random() < 0.2):
            text += f" {POSITIONS[position][0]}"
    if say(0.9):
        text += f" {BACKGROUNDS[scene.background][0]}"
    return text


def grammar_words() -> list[str]:
    """Every word that a caption of any world can hold; the tokenizer gives each one entry."""
    words = {"a", "an", "the", "and", "next", "to", "above", "of", "photo", "picture", "with", "on", "in", "at"}
    words |= set(KIND_OF) | set(KIND_OF.values()) | set(FOLDER_OF) | set(SIZES)
    for phrase, *_ in (*BACKGROUNDS.values(), *POSITIONS.values()):
        words |= set(phrase.split())
    return sorted(words)


def render(
    scenes: Sequence[Scene],
    sprites: dict[tuple[str, str], Tensor],
    *,
    device: str | torch.device = "cpu",
) -> tuple[Tensor, Tensor]:
    """Composes scenes into pictures.

    Args:
        scenes: N scenes.
        sprites: (noun, style) -> (4, 72, 72) premultiplied RGBA in [0, 1], as `load_sprites` returns.
        device: of the computation; sprites are moved to it.

    Returns:
        pictures (N, 3, 64, 64) in [0, 1]; masks (N, 2, 64, 64) in [0, 1], the visible share of each object
        (zeros for the missing second object).
    """
    pictures = draw_backgrounds(scenes, device=device)
    masks = torch.zeros(len(scenes), 2, RESOLUTION, RESOLUTION, device=device)
    for layer in range(2):
        rows = [i for i, scene in enumerate(scenes) if len(scene.objects) > layer]
        if not rows:
            continue
        placed = [scenes[i].objects[layer] for i in rows]
        stack = torch.stack([sprites[thing.noun, thing.style] for thing in placed]).to(device)
        rgba = warp(stack, [thing.box for thing in placed])  # (rows, 4, 64, 64)
        alpha = rgba[:, 3:]  # (rows, 1, 64, 64)
        pictures[rows] = pictures[rows] * (1 - alpha) + rgba[:, :3]
        masks[rows, :layer] *= 1 - alpha
        masks[rows, layer] = alpha[:, 0]
    return pictures.clamp(0, 1), masks


def draw_backgrounds(scenes: Sequence[Scene], *, device: str | torch.device = "cpu") -> Tensor:
    """The empty backgrounds of scenes, (N, 3, 64, 64) in [0, 1]. A horizon is soft over about four pixels."""
    rows = [BACKGROUNDS[scene.background] for scene in scenes]
    tint = torch.tensor([scene.tint for scene in scenes], device=device)[:, :, None, None]  # (N, 3, 1, 1)
    top = torch.tensor([row[1] for row in rows], device=device, dtype=torch.float32)[:, :, None, None]
    bottom = torch.tensor([row[2] for row in rows], device=device, dtype=torch.float32)[:, :, None, None]
    horizon = torch.tensor([row[3] if row[3] is not None else 2.0 for row in rows], device=device)[:, None, None, None]
    y = (torch.arange(RESOLUTION, device=device) + 0.5)[None, None, :, None] / RESOLUTION
    below = torch.sigmoid((y - horizon) * RESOLUTION)
    colour = top * (1 - below) + bottom * below + tint  # (N, 3, 64, 1)
    return (colour / 255).expand(-1, -1, -1, RESOLUTION).clone()


def warp(stack: Tensor, boxes: Sequence[Box], mirrored: Sequence[bool] = (), tilt: Sequence[float] = ()) -> Tensor:
    """Resizes sprites into their boxes on a transparent canvas, mirrored and tilted where that is asked for.

    Args:
        stack: (N, 4, 72, 72) sprites.
        boxes: of each sprite.
        mirrored, tilt: of each sprite; tilt in degrees. Empty for none.

    Returns:
        (N, 4, 64, 64)
    """
    left, top, right, bottom = torch.tensor(boxes, device=stack.device, dtype=torch.float32).unbind(1)
    grid = torch.arange(RESOLUTION, device=stack.device, dtype=torch.float32) + 0.5
    x = ((grid[None, :] - left[:, None]) / (right - left)[:, None] * 2 - 1)[:, None, :]  # the sprite spans [-1, 1]
    y = ((grid[None, :] - top[:, None]) / (bottom - top)[:, None] * 2 - 1)[:, :, None]
    turned = [math.radians(degrees) for degrees in tilt] or [0.0] * len(stack)
    angle = torch.tensor(turned, device=stack.device)[:, None, None]
    side = torch.where(torch.tensor(list(mirrored) or [False] * len(stack), device=stack.device), -1.0, 1.0)
    across, down = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()  # (N, 64, 64)
    places = torch.stack([side[:, None, None] * across, down], dim=-1)  # (N, 64, 64, 2)
    fine = F.grid_sample(stack, places, mode="bilinear", padding_mode="zeros", align_corners=False)
    coarse = F.grid_sample(F.avg_pool2d(stack, 2), places, mode="bilinear", padding_mode="zeros", align_corners=False)
    # Below half the stored size a bilinear read of the full sprite would skip pixels: blend towards the halved one.
    scale = ((right - left) / SPRITE).clamp(0.5, 0.75)[:, None, None, None]
    share = (scale - 0.5) / 0.25
    return fine * share + coarse * (1 - share)


def choose(rng: np.random.Generator, words: Sequence[T]) -> T:
    """One of the words, each as likely."""
    return words[int(rng.integers(len(words)))]
