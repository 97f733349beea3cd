"""What a prompt in the grammar of the embedded world asks for, attribute by attribute."""

import re

from .scenes import World
from .world import BACKGROUNDS, POSITIONS, SIZES

RELATIONS = ("next to", "above")


def asked_of(prompt: str, world: World) -> dict[str, str]:
    """The attributes that a prompt names: "a small <x> cat on the left at night" asks for size, place and background.

    Args:
        prompt: in the order of words of `scenes.caption`; the subject may be a token, a noun or both.
        world: its words.

    Returns:
        of "background", "position", "size", "style", "second" (the noun of the other object) and "relation" those
        that are asked for, each with the label that it should have; {} for a prompt outside of the grammar. With two
        objects neither position nor size is asked for, and a style is that of the other object and left out.
    """
    found: dict[str, str] = {}
    words = f" {' '.join(re.findall(r'<[^<>]+>|[a-z0-9-]+', prompt.lower()))} "
    for label in world.backgrounds:
        if words.endswith(f" {BACKGROUNDS[label][0]} "):
            found["background"] = label
    parts = re.split(f" ({'|'.join(RELATIONS)}) ", words)
    if len(parts) == 3:
        found["relation"] = parts[1]
        named = [next((word for word in side.split() if word in world.nouns), None) for side in (parts[0], parts[2])]
        tokens = ["<" in side for side in (parts[0], parts[2])]
        other = named[0] if tokens[1] and not tokens[0] else named[1]
        if other:
            found["second"] = other
        return found
    for label, (phrase, *_) in POSITIONS.items():
        if f" {phrase} " in words:
            found["position"] = label
    for word in words.split():
        if word in SIZES:
            found["size"] = word
        elif word in world.styles:
            found["style"] = word
    return found
