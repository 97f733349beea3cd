"""The attributes that a prompt in the grammar of the embedded worlds asks for."""

import re
from collections.abc import Iterable

from .drawn_styles import STYLE_FUNCTIONS
from .scenes import World
from .wide_scenes import WideWorld
from .wide_world import ACCESSORIES, COLOURS, NUMBERS, OPENINGS, PATTERNS, PLACES, RELATIONS, SYNONYMS, plural
from .world import BACKGROUNDS, POSITIONS, SIZES

# How two things stand, of which a picture says only this: "under" is "above" the other way round.
SEEN_AS = {"under": "above", "in front of": "behind", "and": None}
_COUNTED = {word: str(number) for number, word in NUMBERS.items()}


def asked_of(prompt: str, world: World | WideWorld) -> dict[str, str]:
    """The attributes that a prompt names: "a small <x> cat on the left at night" asks for size, place and background.

    Args:
        prompt: in the order of words of `scenes.caption`, or of `wide_scenes.wide_caption` for the wide world; the
            subject may be a token, a noun or both.
        world: its words.

    Returns:
        of the attributes below those that are asked for, each with the label that it should have; {} for a prompt
        outside of the grammar.

        - "background", in the wide world with places; "pattern" and its colour as "background" are of the wide world
        - "position", "size", "style", and of the wide world "colour", "count" ("2", "3"), "wearing"
        - "drawn", a style of the whole picture, of the wide world
        - "second" (the noun of the other object) and "relation" of two things: "next to", "above", and of the wide
          world "on" and "behind". Which of the two is above or behind is not told, see `SEEN_AS`. What belongs to one
          of two things, such as its style, is left out: nobody says which of them a reader names first.
    """
    wide = isinstance(world, WideWorld)
    words = " ".join(re.findall(r"<[^<>]+>|[a-z0-9-]+", prompt.lower()))
    found: dict[str, str] = {}
    if wide:
        words = _opened(words, found)
    words = _grounded(words, world, found)
    for label, (phrase, *_) in POSITIONS.items():
        if words.endswith(f" {phrase}"):
            words, found["position"] = words.removesuffix(f" {phrase}"), label
    relations = sorted([*RELATIONS, "and"], key=len, reverse=True) if wide else ["next to", "above"]
    parts = re.split(f" ({'|'.join(relations)}) (?=an? )", words)  # not at "hammer and wrench"
    if len(parts) == 3:
        return _two(parts, world, found)
    return found | _one(parts[0], world) if len(parts) == 1 else {}


def _opened(words: str, found: dict[str, str]) -> str:
    """The words without "a halftone picture of" or "a photo of"."""
    if match := re.match(rf"an? ({'|'.join(STYLE_FUNCTIONS)}) picture of ", words):
        found["drawn"] = match[1]
        return words[match.end() :]
    return next((words.removeprefix(f"{each} ") for each in OPENINGS if words.startswith(f"{each} ")), words)


def _grounded(words: str, world: World | WideWorld, found: dict[str, str]) -> str:
    """The words without the ground that they end in; the ground goes to `found`."""
    if isinstance(world, WideWorld):
        if match := re.search(rf" on an? ({'|'.join(PATTERNS)}) ({'|'.join(COLOURS)}) background$", words):
            found["pattern"], found["background"] = match[1], match[2]
            return words[: match.start()]
        grounds = PLACES | {label: row[0] for label, row in BACKGROUNDS.items()}
    else:
        grounds = {label: BACKGROUNDS[label][0] for label in world.backgrounds}
    for label, phrase in grounds.items():
        if words.endswith(f" {phrase}"):
            found["background"] = label
            return words.removesuffix(f" {phrase}")
    return words


def _two(parts: list[str], world: World | WideWorld, found: dict[str, str]) -> dict[str, str]:
    """The attributes asked of two things on a ground: their relation, and the noun of the one that is no token."""
    if relation := SEEN_AS.get(parts[1], parts[1]):
        found["relation"] = relation
    found.pop("position", None)
    named = [_named(side, world)[0] for side in (parts[0], parts[2])]
    tokens = ["<" in side for side in (parts[0], parts[2])]
    if other := named[0] if tokens[1] and not tokens[0] else named[1]:
        found["second"] = other
    return found


def _named(phrase: str, world: World | WideWorld) -> tuple[str | None, str]:
    """The noun of a phrase such as "a purple 3d kitty wearing a hat" by its own name, and the words before it."""
    phrase = phrase.partition(" wearing ")[0]
    if isinstance(world, WideWorld):
        names = {name: noun for noun, *_ in (*world.core, *world.tail) for name in _names(noun)}
    else:
        names = {noun: noun for noun in world.nouns}
    ends = [name for name in names if phrase.endswith(f" {name}")]
    if not ends:
        return None, phrase.rpartition(" ")[0]
    name = max(ends, key=len)  # "tropical fish" before "fish"
    return names[name], phrase.removesuffix(f" {name}")


def _names(noun: str) -> Iterable[str]:
    many = plural(noun)
    return (noun, *SYNONYMS.get(noun, ()), *([many] if many else ()))


def _one(phrase: str, world: World | WideWorld) -> dict[str, str]:
    """The attributes asked of one thing, or copies of it. A noun is none: "an orange orange", "a purple heart"."""
    found: dict[str, str] = {}
    phrase, _, worn = phrase.partition(" wearing ")
    for word in _named(phrase, world)[1].split():
        if word in SIZES:
            found["size"] = word
        elif word in world.styles:
            found["style"] = word
        elif isinstance(world, WideWorld) and word in COLOURS:
            found["colour"] = word
        elif isinstance(world, WideWorld) and word in _COUNTED:
            found["count"] = _COUNTED[word]
    if isinstance(world, WideWorld) and (accessory := worn.split()[-1:]) and accessory[0] in ACCESSORIES:
        found["wearing"] = accessory[0]
    return found
