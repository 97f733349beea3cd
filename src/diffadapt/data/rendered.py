"""Perfect renderings of prompts, as an ideal adapter would draw them, so that readers can be judged.

The subject is cut out of its own pictures. What needs a sprite that is not there is not drawn: other nouns (a second
thing is a second subject, so that how the two stand can be read and not what the other one is), what is worn, and the
style of another artist.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import Refused
from .scenes import SPRITE, box_at, square
from .wide_pictures import draw_wide_scenes
from .wide_scenes import Ground, Thing, WideScene, boxes_of_copies, standing

DRAWN = ("background", "pattern", "position", "size", "colour", "count", "drawn", "relation")  # of what is asked
_SUBJECT, _OWN = "subject", "own"


def cut_out(picture: Tensor, mask: Tensor) -> Tensor:
    """A subject as a sprite.

    Args:
        picture: (3, H, W) in [0, 1].
        mask: (H, W) in [0, 1], 1 on the subject.

    Returns:
        (4, 72, 72) bytes, colour multiplied by alpha, as `draw_wide_scenes` takes sprites

    Raises:
        Refused: the mask shows nothing.
    """
    places = (mask >= 0.5).nonzero()
    if not len(places):
        raise Refused("the mask shows no subject, so that it cannot be cut out; expected values of 0.5 or more on it")
    rgba = torch.cat([picture * mask, mask[None]])
    (top, left), (bottom, right) = places.amin(0).tolist(), places.amax(0).tolist()
    side = max(bottom - top, right - left) + 1
    y, x = (top + bottom + 1 - side) // 2, (left + right + 1 - side) // 2
    rgba = F.pad(rgba, (side, side, side, side))[:, y + side : y + 2 * side, x + side : x + 2 * side]
    resized = F.interpolate(rgba[None], (SPRITE, SPRITE), mode="bilinear", antialias=True, align_corners=False)[0]
    return (resized.clamp(0, 1) * 255).round().byte()


def rendered(asked: Mapping[str, str], sprite: Tensor, rng: np.random.Generator) -> Tensor:
    """The picture (3, 64, 64) in [0, 1] that a prompt asks for.

    Args:
        asked: as `asked_of` returns it; what it leaves open is medium, in the centre and on white.
        sprite: of the subject, as `cut_out` returns it.
        rng: of the jitter that scenes have.
    """
    ground = Ground(word=asked.get("background", "white"), pattern=asked.get("pattern"), seed=int(rng.integers(2**31)))
    relation = asked.get("relation") or ("next to" if "second" in asked else None)
    if relation:
        sides, places = standing(rng, relation)
        boxes = [(square(*place, side),) for side, place in zip(sides, places, strict=True)]
    elif "count" in asked:
        boxes = [boxes_of_copies(rng, int(asked["count"]))]
    else:
        boxes = [(box_at(rng, asked.get("size", "medium"), asked.get("position", "center")),)]
    things = tuple(
        Thing(noun=_SUBJECT, kind=_SUBJECT, stem=_SUBJECT, style=_OWN, boxes=own, colour=asked.get("colour"))
        for own in boxes
    )
    scene = WideScene(things=things, ground=ground, relation=relation, drawn=asked.get("drawn"))
    return draw_wide_scenes([scene], {(_SUBJECT, _OWN): sprite})[0][0]
