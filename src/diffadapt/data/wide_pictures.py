"""Draws scenes of the wide world: sprites with their looks on painted grounds, and the mask of every thing.

sprites = load_wide_sprites(folder, world)
pictures, masks = draw_wide_scenes(scenes, sprites)   # (N, 3, 64, 64), (N, 2, 64, 64), both in [0, 1]
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .drawn_styles import draw_in_style
from .scenes import FOLDER_OF, RESOLUTION, SPRITE, Box, load_sprite, warp
from .wide_scenes import Ground, Thing, WideScene, WideWorld
from .wide_world import ACCESSORIES, COLOURS
from .world import BACKGROUNDS

Sprites = dict[tuple[str, str], Tensor]  # (file stem, style) -> (4, 72, 72) premultiplied RGBA in bytes


def load_wide_sprites(folder: str | Path, world: WideWorld, more: Iterable[tuple[str, str, str]] = ()) -> Sprites:
    """Reads every sprite of a world, what can be worn, and the sprites of `more` nouns, as bytes (21 KB each)."""
    stems = {stem for *_, stem in (*world.core, *world.tail, *more)} | set(ACCESSORIES.values())
    return {
        (stem, style): (load_sprite(Path(folder) / FOLDER_OF[style] / f"{stem}.png") * 255).round().byte()
        for stem in sorted(stems)
        for style in world.styles
    }


def draw_wide_scenes(scenes: Sequence[WideScene], sprites: Sprites) -> tuple[Tensor, Tensor]:
    """Composes scenes into pictures.

    Returns:
        pictures (N, 3, 64, 64) in [0, 1]; masks (N, 2, 64, 64) in [0, 1], the visible share of each thing with all
        its copies and what it wears (zeros where a scene has one thing).
    """
    pictures = torch.from_numpy(np.stack([paint_ground(scene.ground) for scene in scenes]))
    masks = torch.zeros(len(scenes), 2, RESOLUTION, RESOLUTION)
    # Layer by layer over the whole batch: clutter, then the things back to front, copies of a thing one by one.
    layers = [
        [(box, thing, None) for thing in scene.clutter for box in thing.boxes]
        + [(box, thing, place) for place, thing in enumerate(scene.things) for box in thing.boxes]
        for scene in scenes
    ]
    for depth in range(max(map(len, layers))):
        rows = [i for i, each in enumerate(layers) if len(each) > depth]
        drawn = [layers[i][depth] for i in rows]
        stack = torch.stack([dress(thing, sprites) for _, thing, _ in drawn])
        boxes, things = [box for box, *_ in drawn], [thing for _, thing, _ in drawn]
        rgba = warp(stack, boxes, [thing.mirrored for thing in things], [thing.tilt for thing in things])
        for i, (_, _, place), layer in zip(rows, drawn, rgba, strict=True):
            alpha = layer[3:]
            pictures[i] = pictures[i] * (1 - alpha) + layer[:3]
            masks[i] *= 1 - alpha
            if place is not None:
                masks[i, place] += alpha[0]
    pictures = pictures.clamp(0, 1)
    for style in {scene.drawn for scene in scenes if scene.drawn}:
        rows = [i for i, scene in enumerate(scenes) if scene.drawn == style]
        pictures[rows] = draw_in_style(style, pictures[rows])
    return pictures, masks.clamp(0, 1)


def dress(thing: Thing, sprites: Sprites) -> Tensor:
    """The sprite of a thing in its colours, with what it wears: (4, 72, 72) premultiplied RGBA in [0, 1]."""
    rgba = sprites[thing.stem, thing.style].float() / 255
    rgba = recolour(rgba, thing.colour) if thing.colour else _turn_hue(rgba, thing.hue)
    if thing.wearing is None:
        return rgba
    worn = sprites[ACCESSORIES[thing.wearing], thing.style].float() / 255
    if thing.wearing_colour:
        worn = recolour(worn, thing.wearing_colour)
    body = _resize(rgba, (8.0, 15.0, 65.0, 72.0))  # room above for a hat
    left, right, top, bottom = _head(body[3])
    centre, width, height = (left + right) / 2, right - left, bottom - top
    if thing.wearing in ("hat", "crown"):
        half, lowest = 0.55 * width, top + 0.10 * height
    elif thing.wearing == "glasses":
        half, lowest = 0.50 * width, top + 0.30 * height + 0.5 * width
    else:
        half, lowest = 0.50 * width, top + 0.56 * height + 0.5 * width
    on = _resize(worn, (centre - half, lowest - 2 * half, centre + half, lowest))
    return on + body * (1 - on[3:])


def _head(alpha: Tensor) -> tuple[float, float, float, float]:
    """Where a head would be: left and right edge of the upper part, top and bottom of the whole, in sprite pixels."""
    rows = (alpha > 0.5).any(1).nonzero().flatten()
    if len(rows) == 0:
        return 20.0, 52.0, 20.0, 70.0
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    upper = alpha[top + (bottom - top) // 8 : top + max(2, (bottom - top) // 3)] > 0.5
    columns = upper.any(0).nonzero().flatten()
    left, right = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (20, 52)
    middle, half = (left + right) / 2, min(max((right - left) / 2, 10.0), 20.0)
    return middle - half, middle + half, float(top), float(bottom)


def recolour(rgba: Tensor, word: str) -> Tensor:
    """Paints a sprite in one colour: its brightness is kept, from a dark to a light tone of the colour."""
    colour = torch.tensor(COLOURS[word])[:, None, None] / 255
    alpha = rgba[3:]
    grey = (rgba[0] * 0.299 + rgba[1] * 0.587 + rgba[2] * 0.114)[None] / alpha.clamp(min=1e-3)
    seen = alpha[0] > 0.5
    if seen.any():  # stretch, so that a black or a white sprite takes the colour too
        values = grey[0][seen]
        low, high = values.quantile(0.05), values.quantile(0.95)
        grey = ((grey - low) / (high - low).clamp(min=0.15)).clamp(0, 1)
    dark, light = colour * 0.45, colour + (1 - colour) * 0.55
    low, high = (1 - grey / 0.6).clamp(min=0), ((grey - 0.6) / 0.4).clamp(min=0)
    return torch.cat([(dark * low + light * high + colour * (1 - low - high)) * alpha, alpha])


def _turn_hue(rgba: Tensor, degrees: float) -> Tensor:
    """Turns the hue about the grey axis; linear, so colour may stay multiplied by alpha."""
    if degrees == 0:
        return rgba
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    third, root = (1 - cosine) / 3, math.sqrt(1 / 3) * sine
    a, b, c = cosine + third, third - root, third + root
    turn = torch.tensor([[a, b, c], [c, a, b], [b, c, a]])
    turned = torch.einsum("ij,jhw->ihw", turn, rgba[:3])
    return torch.cat([torch.minimum(turned.clamp(min=0), rgba[3:]), rgba[3:]])


def _resize(rgba: Tensor, box: Box) -> Tensor:
    """A sprite drawn into a box of its own canvas, (4, 72, 72) -> (4, 72, 72)."""
    left, top, right, bottom = box
    grid = torch.arange(SPRITE, dtype=torch.float32) + 0.5
    x, y = (grid - left) / (right - left) * 2 - 1, (grid - top) / (bottom - top) * 2 - 1
    places = torch.stack([x[None, :].expand(SPRITE, -1), y[:, None].expand(-1, SPRITE)], dim=-1)
    source = rgba[None] if right - left > SPRITE / 2 else F.avg_pool2d(rgba[None], 2)
    return F.grid_sample(source, places[None], mode="bilinear", padding_mode="zeros", align_corners=False)[0]


# --- grounds ----------------------------------------------------------------------------------------------------------

_V, _U = np.mgrid[0:RESOLUTION, 0:RESOLUTION].astype(np.float32)  # row and column of each pixel


def paint_ground(ground: Ground) -> np.ndarray:
    """(3, 64, 64) float32 in [0, 1]. The same ground is painted the same way every time."""
    rng = np.random.default_rng(ground.seed)
    if ground.pattern:
        picture = _pattern(ground.pattern, _rgb(COLOURS[ground.word]), rng)
    elif ground.word in PAINTERS:
        picture = PAINTERS[ground.word](rng)
    else:
        _, top, bottom, horizon = BACKGROUNDS[ground.word]
        below = 1 / (1 + np.exp(-(_V + 0.5 - RESOLUTION * (2.0 if horizon is None else horizon)).clip(-30, 30)))
        picture = _rgb(top) * (1 - below) + _rgb(bottom) * below
    tint = np.array(ground.tint, dtype=np.float32)[:, None, None] / 255
    return np.clip(picture + tint, 0, 1).astype(np.float32)


def _rgb(colour: tuple[int, int, int]) -> np.ndarray:
    return np.array(colour, dtype=np.float32)[:, None, None] / 255


def _blend(low: np.ndarray, high: np.ndarray, share: np.ndarray) -> np.ndarray:
    return low * (1 - share) + high * share


def _pattern(pattern: str, colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two tones of one colour, in stripes, dots or squares, with a random pitch, phase and direction."""
    pitch = float(rng.uniform(7, 13))
    phase_u, phase_v = rng.uniform(0, pitch, 2)
    u, v = (_U + phase_u) / pitch, (_V + phase_v) / pitch
    if pattern == "striped":
        angle = float(rng.choice([0.0, math.pi / 2, math.pi / 4, -math.pi / 4]))
        share = np.sin(2 * math.pi * (u * math.cos(angle) + v * math.sin(angle))) > 0
    elif pattern == "dotted":
        share = (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.09
    else:
        share = (np.floor(u) + np.floor(v)) % 2 > 0
    bright = float(colour.mean())
    other = colour * 0.62 if bright > 0.55 else colour + (1 - colour) * 0.42
    return _blend(colour, other, share.astype(np.float32))


def _noise(rng: np.random.Generator, cells: int) -> np.ndarray:
    """Smooth noise in [0, 1], `cells` bumps across."""
    coarse = torch.from_numpy(rng.random((1, 1, cells + 2, cells + 2), dtype=np.float32))
    return (
        F.interpolate(coarse, (RESOLUTION, RESOLUTION), mode="bicubic", align_corners=False)[0, 0].clamp(0, 1).numpy()
    )


def _horizon(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    """1 below a line at a random height, soft over about two pixels."""
    return 1 / (1 + np.exp(-(_V - RESOLUTION * rng.uniform(low, high)).clip(-30, 30) * 2))


def _snow(rng: np.random.Generator) -> np.ndarray:
    picture = _blend(_rgb((188, 208, 232)), _rgb((244, 247, 252)), _horizon(rng, 0.45, 0.65))
    for u, v in rng.uniform(0, RESOLUTION, (22, 2)):
        picture = _blend(picture, _rgb((255, 255, 255)), np.exp(-((_U - u) ** 2 + (_V - v) ** 2) / 1.2))
    return picture


def _beach(rng: np.random.Generator) -> np.ndarray:
    picture = _blend(_rgb((150, 212, 244)), _rgb((46, 150, 196)), _horizon(rng, 0.3, 0.4))
    return _blend(picture, _rgb((240, 218, 164)), _horizon(rng, 0.55, 0.65))


def _forest(rng: np.random.Generator) -> np.ndarray:
    picture = _blend(_rgb((96, 150, 98)), _rgb((64, 98, 52)), _horizon(rng, 0.65, 0.8))
    for u in np.arange(4, RESOLUTION, 11) + rng.uniform(-3, 3, 6)[: len(np.arange(4, RESOLUTION, 11))]:
        width = rng.uniform(1.5, 3)
        trunk = (np.abs(_U - u) < width) & (RESOLUTION * rng.uniform(0.7, 0.85) > _V)
        picture = _blend(picture, _rgb((84, 62, 44)), trunk.astype(np.float32))
    leaves = (_noise(rng, 12) > 0.45) & (_V < RESOLUTION * 0.28)
    return _blend(picture, _rgb((40, 104, 58)), leaves.astype(np.float32))


def _sky(rng: np.random.Generator) -> np.ndarray:
    cloud = np.clip((_noise(rng, 5) - 0.5) * 5, 0, 1)
    return _blend(_rgb((108, 178, 240)), _rgb((246, 250, 255)), cloud)


def _wood(rng: np.random.Generator) -> np.ndarray:
    board = np.floor((_V + rng.uniform(0, 9)) / 9)
    tone = 0.12 * np.sin(board * 12.9898 + rng.uniform(0, 6)) + 0.07 * np.sin(_V * 2.2 + 3 * _noise(rng, 4) + _U * 0.06)
    gap = ((_V + 0.5) % 9 < 1).astype(np.float32)
    return np.clip(_rgb((176, 122, 74)) * (1 + tone), 0, 1) * (1 - 0.4 * gap)


def _bricks(rng: np.random.Generator) -> np.ndarray:
    row = np.floor(_V / 7)
    u = _U + 6.5 * (row % 2) + rng.uniform(0, 13)
    brick = np.floor(u / 13)
    tone = 0.12 * np.sin(row * 7.13 + brick * 3.71)
    mortar = ((_V % 7 < 1) | (u % 13 < 1)).astype(np.float32)
    return _blend(np.clip(_rgb((172, 84, 66)) * (1 + tone), 0, 1), _rgb((206, 196, 186)), mortar)


def _space(rng: np.random.Generator) -> np.ndarray:
    picture = _blend(_rgb((10, 10, 28)), _rgb((62, 34, 96)), np.clip(_noise(rng, 4) - 0.35, 0, 1))
    for u, v, size in rng.uniform(0, 1, (30, 3)):
        star = np.exp(-((_U - u * RESOLUTION) ** 2 + (_V - v * RESOLUTION) ** 2) / (0.25 + 0.7 * size))
        picture = _blend(picture, _rgb((255, 250, 230)), star)
    return picture


def _water(rng: np.random.Generator) -> np.ndarray:
    ripple = np.sin(_V * 0.55 + 2.5 * _noise(rng, 5) + _U * 0.12) * 0.5 + 0.5
    picture = _blend(_rgb((44, 160, 196)), _rgb((12, 62, 122)), _V / RESOLUTION)
    return np.clip(picture + 0.09 * ripple * (1 - _V / RESOLUTION), 0, 1)


def _room(rng: np.random.Generator) -> np.ndarray:
    wall = ((226, 206, 178), (190, 208, 196), (206, 196, 220))[int(rng.integers(3))]
    picture = _blend(_rgb(wall), _rgb((150, 108, 76)), _horizon(rng, 0.66, 0.76))
    if rng.random() < 0.6:  # a window
        u, v = rng.uniform(8, 46), rng.uniform(6, 14)
        frame = ((np.abs(_U - u) < 9) & (np.abs(_V - v - 4) < 9)).astype(np.float32)
        glass = ((np.abs(_U - u) < 7.5) & (np.abs(_V - v - 4) < 7.5) & (np.abs(_U - u) > 0.7)).astype(np.float32)
        picture = _blend(_blend(picture, _rgb((250, 246, 238)), frame), _rgb((150, 204, 240)), glass)
    return picture


def _sunset(rng: np.random.Generator) -> np.ndarray:
    line = RESOLUTION * rng.uniform(0.6, 0.75)
    picture = _blend(_rgb((98, 66, 140)), _rgb((252, 158, 76)), np.clip(_V / line, 0, 1))
    disc = ((_U - rng.uniform(14, 50)) ** 2 + (_V - line) ** 2 < 81) & (line > _V)
    picture = _blend(picture, _rgb((255, 226, 130)), disc.astype(np.float32))
    return _blend(picture, _rgb((88, 52, 84)), (line <= _V).astype(np.float32))


def _mountains(rng: np.random.Generator) -> np.ndarray:
    picture = np.broadcast_to(_rgb((170, 210, 238)), (3, RESOLUTION, RESOLUTION)).copy()
    for colour, low in (((128, 142, 170), 14), ((92, 108, 136), 26)):
        peaks, height = rng.uniform(0, RESOLUTION, 3), rng.uniform(low, low + 10, 3)
        ridge = np.min([h + np.abs(_U - p) * rng.uniform(0.8, 1.2) for p, h in zip(peaks, height, strict=True)], axis=0)
        picture = _blend(picture, _rgb(colour), (ridge < _V).astype(np.float32))
        picture = _blend(
            picture, _rgb((246, 248, 252)), ((ridge < _V) & (ridge + 5 > _V) & (low + 16 > _V)).astype(np.float32)
        )
    return _blend(picture, _rgb((98, 150, 84)), _horizon(rng, 0.72, 0.82))


def _street(rng: np.random.Generator) -> np.ndarray:
    picture = np.broadcast_to(_rgb((186, 212, 232)), (3, RESOLUTION, RESOLUTION)).copy()
    left = -float(rng.uniform(0, 8))
    while left < RESOLUTION:
        width, top = float(rng.uniform(10, 18)), float(rng.uniform(8, 30))
        house = (left <= _U) & (left + width > _U) & (top < _V)
        panes = house & ((_U - left) % 5 > 2) & ((_V - top) % 7 > 3) & (_V - top > 2)
        tone = float(rng.uniform(0.75, 1.05))
        picture = _blend(picture, np.clip(_rgb((176, 150, 136)) * tone, 0, 1), house.astype(np.float32))
        picture = _blend(picture, _rgb((246, 232, 168)), 0.8 * panes.astype(np.float32))
        left += width
    road = _horizon(rng, 0.68, 0.76)
    picture = _blend(picture, _rgb((86, 88, 94)), road)
    marks = (np.abs(_V - 57) < 1.2) & ((_U + rng.uniform(0, 12)) % 12 < 7)
    return _blend(picture, _rgb((236, 232, 214)), marks.astype(np.float32))


PAINTERS = {
    "snow": _snow, "beach": _beach, "forest": _forest, "sky": _sky, "wood": _wood, "bricks": _bricks, "space": _space,
    "water": _water, "room": _room, "sunset": _sunset, "mountains": _mountains, "street": _street,
}  # fmt: skip
