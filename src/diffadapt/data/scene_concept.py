"""A subject that the embedded base has never seen: one emoji in five captioned scenes of the base's world."""

from pathlib import Path

import numpy as np

from ..files import write_atomic
from .folder import MASK_ENDING
from .picture import to_picture, write_png
from .scenes import KIND_OF, Scene, World, caption, load_sprites, place, render

# size, position, background
SCENES = (("large", "center", "red"), ("medium", "left", "meadow"), ("medium", "right", "white"),
          ("large", "center", "blue"), ("medium", "bottom", "yellow"))  # fmt: skip


def write_scene_concept(folder: Path, sprites: str | Path, noun: str, style: str, *, count: int = len(SCENES)) -> Path:
    """Writes pictures, masks and captions that `load_concept` reads; the captions call the emoji "[token] KIND".

    Args:
        folder: where to.
        sprites: folder of sprite folders, as `load_sprites` takes it.
        noun, style: which emoji, for example "fox" and "3d" out of `data.world`.
        count: how many of the five scenes.

    Raises:
        Refused: there is no such emoji.
    """
    sprite = load_sprites(sprites, World(nouns=(noun,), styles=(style,)))
    rng = np.random.default_rng(0)
    for i, (size, position, background) in enumerate(SCENES[:count]):
        scene = Scene(objects=(place(rng, noun, style, size, position),), background=background)
        pictures, masks = render([scene], sprite)
        write_png(folder / f"{i}.png", to_picture(pictures[0]))
        write_png(folder / f"{i}{MASK_ENDING}.png", to_picture(masks[0, :1].expand(3, -1, -1)))
        named = caption(scene).replace(f" {style} {noun}", f" [token] {KIND_OF[noun]}")
        write_atomic(folder / f"{i}.txt", named.replace("an [token]", "a [token]") + "\n")
    return folder
