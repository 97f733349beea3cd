"""Scenes of the wide world: what is in the picture, drawn at random, and its caption.

A scene holds up to two things on a ground; a thing may be coloured, counted, dressed, mirrored, tilted. Everything a
caption says is true of the picture, and a picture may hold more than its caption says (clutter, the looks of a thing).

    world = wide_world(tail_nouns(folder))
    scene = sample_wide_scene(np.random.default_rng(0), world)
    text = wide_caption(scene, np.random.default_rng(1))
    pictures, masks = draw_wide_scenes([scene], sprites)      # wide_pictures
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .drawn_styles import SEEN
from .scenes import Box, World, box_at, choose, plain_world_of, square
from .wide_world import (
    ACCESSORIES,
    CLASSES,
    COLOURS,
    CORE,
    NUMBERS,
    OPENINGS,
    PATTERNS,
    PLACES,
    RELATIONS,
    SYNONYMS,
    plural,
)
from .world import BACKGROUNDS, NOUNS, POSITIONS, STYLES


@dataclass(frozen=True, kw_only=True)
class WideWorld:
    """The vocabulary of scenes: nouns as (noun, kind, file stem), the core taught by heart and the tail for breadth.

    Args:
        core, tail: nouns; at least one in the core.
        styles: style words of `world.STYLES`.
        drawn: words of `drawn_styles.SEEN` (or of HELD_OUT where a style is to be taught).
        core_share: probability that a thing is of the core, in [0, 1].
        single_share: share of scenes with one undressed thing, in [0, 1); the others keep their proportions.
        mirrored: share of things that are their own mirror image, in [0, 1].
        looks: how often a thing is not as its artist drew it in other ways, in [0, 1]: at 1 half of the things are
            tilted and half have their hue turned.
    """

    core: tuple[tuple[str, str, str], ...] = NOUNS[:CORE]
    tail: tuple[tuple[str, str, str], ...] = ()
    styles: tuple[str, ...] = tuple(style for style, _ in STYLES)
    drawn: tuple[str, ...] = SEEN
    core_share: float = 0.5
    single_share: float = 0.55
    mirrored: float = 0.5
    looks: float = 1.0

    @property
    def nouns(self) -> tuple[str, ...]:
        """The nouns of the core."""
        return tuple(noun for noun, *_ in self.core)

    @property
    def backgrounds(self) -> tuple[str, ...]:
        """The words of plain grounds."""
        return tuple(BACKGROUNDS)


def world_of(base: Any) -> World | WideWorld | None:
    """The small world that a base knows, or None for a base of general vocabulary.

    A base whose card lists colours knows the wide world. The tail has names only, enough for captions.
    """
    words = base.world
    if not words:
        return None
    if "colours" not in words:
        return plain_world_of(base)
    core = tuple(row for row in NOUNS if row[0] in set(words["nouns"]))
    tail = tuple((name, "thing", name) for name in words.get("tail", ()))
    return WideWorld(core=core, tail=tail, styles=tuple(words["styles"]), drawn=tuple(words.get("drawn", ())))


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One noun in a scene, once or as several copies.

    Args:
        noun, kind, stem: its words and the name of its sprite.
        style, size, position: words; size and position are said for single things only.
        boxes: one per copy.
        colour: a word of COLOURS when it is not as its artist painted it.
        wearing: a word of ACCESSORIES, and its colour or None.
        mirrored, tilt, hue: looks that no caption tells; tilt and hue in degrees.
    """

    noun: str
    kind: str
    stem: str
    style: str
    size: str = "medium"
    position: str = "center"
    boxes: tuple[Box, ...]
    colour: str | None = None
    wearing: str | None = None
    wearing_colour: str | None = None
    mirrored: bool = False
    tilt: float = 0.0
    hue: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Ground:
    """The ground of a scene: a word of BACKGROUNDS or of PLACES, or a colour with a pattern."""

    word: str
    pattern: str | None = None
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)  # added to the colour, in 255ths
    seed: int = 0  # of what is random in it

    @property
    def phrase(self) -> str:
        if self.pattern:
            return f"on a {self.pattern} {self.word} background"
        return PLACES[self.word] if self.word in PLACES else BACKGROUNDS[self.word][0]


@dataclass(frozen=True, kw_only=True)
class WideScene:
    """Things back to front, as the caption names them except where `relation` is "in front of"."""

    things: tuple[Thing, ...]
    ground: Ground
    relation: str | None = None
    drawn: str | None = None  # a style of `drawn_styles` for the whole picture
    clutter: tuple[Thing, ...] = field(default=())  # behind everything, never in the caption


def sample_wide_scene(rng: np.random.Generator, world: WideWorld, *, plain: bool = False) -> WideScene:
    """Draws a scene. With `plain` it holds one thing, as its artist painted it, on an old background."""
    ground = Ground(word=choose(rng, tuple(BACKGROUNDS)), tint=_tint(rng)) if plain else _ground(rng)
    if plain:
        return WideScene(things=(_single(rng, world),), ground=ground)
    rest = (1 - world.single_share) / 0.45
    kind = rng.choice(4, p=(world.single_share, 0.24 * rest, 0.09 * rest, 0.12 * rest))
    relation = None
    if kind == 1:
        things, relation = _pair(rng, world)
    elif kind == 2:
        things = (_counted(rng, world),)
    else:
        things = (_single(rng, world, dressed=kind == 3),)
    drawn = choose(rng, world.drawn) if world.drawn and rng.random() < 0.07 else None
    clutter = _clutter(rng, world, things) if rng.random() < 0.1 else ()
    return WideScene(things=things, ground=ground, relation=relation, drawn=drawn, clutter=clutter)


def wide_caption(scene: WideScene, rng: np.random.Generator | None = None) -> str:
    """Puts a scene into words: "a small purple 3d cat wearing a red hat on the left on a striped blue background".

    Without `rng` everything is said, by its noun. With it, each attribute is sometimes left out, a noun is sometimes
    replaced by another word for it, by its class or its kind, and one caption in ten is the noun alone.
    """

    def say(probability: float) -> bool:
        return rng is None or rng.random() < probability

    if rng is not None and rng.random() < 0.1:
        thing = scene.things[0]
        if len(scene.things) == 1 and len(thing.boxes) == 1:
            return _article(_word_for(thing, rng, general=0.5))
    phrases = [_phrase(thing, rng, single=scene.relation is None) for thing in scene.things]
    relation = scene.relation
    if relation == "in front of":  # the thing in front is drawn last and named first
        phrases.reverse()
    if relation and rng is not None and rng.random() < 0.2:
        relation = "and"
    text = f" {relation} ".join(phrases)
    first = scene.things[0]
    if relation is None and len(first.boxes) == 1:
        centred = first.position == "center"
        if (not centred and say(0.75)) or (centred and rng is not None and rng.random() < 0.15):
            text += f" {POSITIONS[first.position][0]}"
    if scene.drawn and say(0.95):
        text = f"a {scene.drawn} picture of {text}"
    elif rng is not None and rng.random() < 0.06:
        text = f"{choose(rng, OPENINGS)} {text}"
    if say(0.88):
        text += f" {scene.ground.phrase}"
    return text


# --- what a caption is made of ----------------------------------------------------------------------------------------


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _word_for(thing: Thing, rng: np.random.Generator | None, *, general: float) -> str:
    """The noun, another word for it, its class or its kind; `general` is the probability of class or kind."""
    if rng is None:
        return thing.noun
    if rng.random() < general:
        classes = [word for word, nouns in CLASSES.items() if thing.noun in nouns]
        return classes[0] if classes and rng.random() < 0.4 else thing.kind
    others = SYNONYMS.get(thing.noun, ())
    return choose(rng, others) if others and rng.random() < 0.25 else thing.noun


def _phrase(thing: Thing, rng: np.random.Generator | None, *, single: bool) -> str:
    def say(probability: float) -> bool:
        return rng is None or rng.random() < probability

    words = []
    if single and len(thing.boxes) == 1 and thing.size != "medium" and say(0.8):
        words.append(thing.size)
    if thing.colour and say(0.92):
        words.append(thing.colour)
    if say(0.8):
        words.append(thing.style)
    if len(thing.boxes) > 1:
        return " ".join([NUMBERS[len(thing.boxes)], *words, plural(thing.noun) or thing.noun])
    words.append(_word_for(thing, rng, general=0.13))
    phrase = _article(" ".join(words))
    if thing.wearing and say(0.95):
        worn = thing.wearing
        if thing.wearing_colour and say(0.9):
            worn = f"{thing.wearing_colour} {worn}"
        phrase += f" wearing {worn if thing.wearing == 'glasses' else _article(worn)}"
    return phrase


# --- what a scene is made of ------------------------------------------------------------------------------------------


def _tint(rng: np.random.Generator) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in rng.uniform(-8, 8, 3))
    return red, green, blue


def _ground(rng: np.random.Generator) -> Ground:
    share, seed = rng.random(), int(rng.integers(2**31))
    if share < 0.62:
        return Ground(word=choose(rng, tuple(BACKGROUNDS)), tint=_tint(rng), seed=seed)
    if share < 0.78:
        return Ground(word=choose(rng, tuple(COLOURS)[:10]), pattern=choose(rng, PATTERNS), tint=_tint(rng), seed=seed)
    return Ground(word=choose(rng, tuple(PLACES)), tint=_tint(rng), seed=seed)


def _noun(rng: np.random.Generator, world: WideWorld, core_share: float | None = None) -> tuple[str, str, str]:
    share = world.core_share if core_share is None else core_share
    return choose(rng, world.core if not world.tail or rng.random() < share else world.tail)


def _looks(rng: np.random.Generator, world: WideWorld) -> dict[str, Any]:
    """Mirror, tilt and hue: at least eight looks of each sprite, so that a seed changes something."""
    share = 0.5 * world.looks
    return {
        "mirrored": bool(rng.random() < world.mirrored),
        "tilt": float(rng.normal(0, 7)) if rng.random() < share else 0.0,
        "hue": float(rng.normal(0, 9)) if rng.random() < share else 0.0,
    }


def _colour(rng: np.random.Generator, share: float) -> str | None:
    return choose(rng, tuple(COLOURS)) if rng.random() < share else None


def _single(rng: np.random.Generator, world: WideWorld, *, dressed: bool = False) -> Thing:
    noun, kind, stem = _noun(rng, world, 0.7 if dressed else None)
    size = ("small", "medium", "large")[rng.choice(3, p=(0.0, 0.4, 0.6) if dressed else (0.2, 0.4, 0.4))]
    position = "center"
    if size != "large" and rng.random() < 0.6:
        position = choose(rng, ("left", "right", "top", "bottom"))
    box = box_at(rng, size, position)
    wearing = choose(rng, tuple(ACCESSORIES)) if dressed else None
    return Thing(
        noun=noun, kind=kind, stem=stem, style=choose(rng, world.styles), size=size, position=position,
        boxes=(box,), colour=_colour(rng, 0.15 if dressed else 0.22), wearing=wearing,
        wearing_colour=_colour(rng, 0.5) if dressed else None, **_looks(rng, world),
    )  # fmt: skip


def _counted(rng: np.random.Generator, world: WideWorld) -> Thing:
    countable = [row for row in world.core if plural(row[0])]
    noun, kind, stem = choose(rng, countable or world.core)
    boxes = boxes_of_copies(rng, 2 if rng.random() < 0.5 else 3)
    return Thing(
        noun=noun, kind=kind, stem=stem, style=choose(rng, world.styles), size="small", boxes=boxes,
        colour=_colour(rng, 0.25), **_looks(rng, world),
    )  # fmt: skip


def boxes_of_copies(rng: np.random.Generator, count: int) -> tuple[Box, ...]:
    """Where two or three copies of a thing stand."""
    if count == 2:
        places = [(17.0, 32.0), (47.0, 32.0)] if rng.random() < 0.7 else [(32.0, 17.0), (32.0, 47.0)]
    elif rng.random() < 0.5:
        places = [(12.0, 32.0), (32.0, 32.0), (52.0, 32.0)]
    else:
        places = [(17.0, 46.0), (47.0, 46.0), (32.0, 18.0)]
    low, high = (24, 29) if places[0][0] > 12 else (18, 20)
    side = int(rng.integers(low, high + 1))
    return tuple(square(x + rng.uniform(-1.5, 1.5), y + rng.uniform(-2, 2), side) for x, y in places)


def _pair(rng: np.random.Generator, world: WideWorld) -> tuple[tuple[Thing, ...], str]:
    """Two things back to front and how the first named stands to the second."""
    first, second = _noun(rng, world, 0.65), _noun(rng, world, 0.65)
    while second[0] == first[0]:
        second = _noun(rng, world, 1.0 if len(world.core) > 1 else 0.0)
    style = choose(rng, world.styles)
    other = style if rng.random() < 0.7 else choose(rng, world.styles)
    relation = RELATIONS[rng.choice(len(RELATIONS), p=(0.4, 0.14, 0.14, 0.14, 0.12, 0.06))]
    sides, places = standing(rng, relation)
    upright: dict[str, Any] = {"tilt": 0.0} if relation == "on" else {}
    things = tuple(
        Thing(
            noun=noun, kind=kind, stem=stem, style=its_style, size="small",
            boxes=(square(x + rng.uniform(-1.5, 1.5), y + (0 if relation == "on" else rng.uniform(-1.5, 1.5)), side),),
            colour=_colour(rng, 0.15), **(_looks(rng, world) | upright),
        )
        for (noun, kind, stem), its_style, (x, y), side in zip(
            (first, second), (style, other), places, sides, strict=True
        )
    )  # fmt: skip
    return things, relation


def standing(rng: np.random.Generator, relation: str) -> tuple[list[float], list[tuple[float, float]]]:
    """How large two things are and where their middles are, the first named first, by how they stand to each other."""
    sides = [float(rng.integers(26, 31)), float(rng.integers(26, 31))]
    if relation == "next to":
        places = [(16.5, 32.0), (47.5, 32.0)]
    elif relation == "above":
        places = [(32.0, 16.5), (32.0, 47.5)]
    elif relation == "under":
        places = [(32.0, 47.5), (32.0, 16.5)]
    elif relation == "on":  # touching: the first one's feet on the second one's top
        sides = [float(rng.integers(22, 27)), float(rng.integers(30, 35))]
        bottom = 62 - sides[1]
        places = [(32.0, bottom - sides[0] / 2 + 2.5), (32.0, 62 - sides[1] / 2)]
    else:  # behind, in front of: the one in front covers a corner of the other
        sides = [float(rng.integers(32, 37)), float(rng.integers(26, 31))]
        aside = 5.0 if rng.random() < 0.5 else -5.0
        places = [(32.0 - aside, 26.0), (32.0 + aside, 40.0)]
    return sides, places


def _clutter(rng: np.random.Generator, world: WideWorld, things: tuple[Thing, ...]) -> tuple[Thing, ...]:
    """One to three small things at the edges, where no thing's box is."""
    found: list[Thing] = []
    boxes = [box for thing in things for box in thing.boxes]
    for _ in range(int(rng.integers(1, 4))):
        side = float(rng.integers(10, 16))
        x, y = (float(v) for v in rng.uniform(6, 58, 2))
        box = square(x, y, side)
        if all(box[2] < b[0] + 2 or box[0] > b[2] - 2 or box[3] < b[1] + 2 or box[1] > b[3] - 2 for b in boxes):
            noun, kind, stem = _noun(rng, world, 0.2)
            style = choose(rng, world.styles)
            found.append(Thing(noun=noun, kind=kind, stem=stem, style=style, boxes=(box,), **_looks(rng, world)))
            boxes.append(box)
    return tuple(found)
