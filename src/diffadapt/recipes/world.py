"""The vocabulary of a base with a small world, as the prompts of evaluation and samples need it."""

from ..bases import Base
from ..data.scenes import World


def world_of(base: Base) -> World | None:
    """The base's world, or None for a base of general vocabulary."""
    told = base.world
    if not told:
        return None
    return World(**{key: tuple(told[key]) for key in ("nouns", "styles", "backgrounds") if key in told})
