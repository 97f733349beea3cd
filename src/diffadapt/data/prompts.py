"""Prompts for evaluation: the concept in other contexts, and prompts unrelated to the concept (drift).

For ordinary bases the first kind are the 25 prompts of the DreamBooth benchmark (Ruiz et al. 2023, arXiv:2208.12242;
github.com/google/dreambooth, dataset/prompts_and_classes.txt, CC-BY 4.0): one list for objects, one for live subjects.
A base with a small vocabulary, such as the embedded one, gets prompts in the grammar of its world instead.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import Refused
from .scenes import KIND_OF, World, caption, sample_scene
from .wide_scenes import WideWorld, sample_wide_scene, wide_caption, world_of
from .wide_world import PLACES
from .world import BACKGROUNDS, POSITIONS, STYLES

WORLD_CAPTIONS = 4000
# "{}" is the subject: token and class noun.
_CONTEXTS = (
    "a {} in the jungle", "a {} in the snow", "a {} on the beach", "a {} on a cobblestone street",
    "a {} on top of pink fabric", "a {} on top of a wooden floor", "a {} with a city in the background",
    "a {} with a mountain in the background", "a {} with a blue house in the background",
    "a {} on top of a purple rug in a forest",
)  # fmt: skip
_PROPERTIES = ("a red {}", "a purple {}", "a shiny {}", "a wet {}", "a cube shaped {}")
OBJECT_PROMPTS: tuple[str, ...] = (
    *_CONTEXTS,
    "a {} with a wheat field in the background", "a {} with a tree and autumn leaves in the background",
    "a {} with the Eiffel Tower in the background", "a {} floating on top of water",
    "a {} floating in an ocean of milk", "a {} on top of green grass with sunflowers around it",
    "a {} on top of a mirror",
    "a {} on top of the sidewalk in a crowded street", "a {} on top of a dirt road", "a {} on top of a white rug",
    *_PROPERTIES,
)  # fmt: skip
LIVE_PROMPTS: tuple[str, ...] = (
    *_CONTEXTS,
    "a {} wearing a red hat", "a {} wearing a santa hat", "a {} wearing a rainbow scarf",
    "a {} wearing a black top hat and a monocle", "a {} in a chef outfit", "a {} in a firefighter outfit",
    "a {} in a police outfit", "a {} wearing pink glasses", "a {} wearing a yellow shirt",
    "a {} in a purple wizard outfit",
    *_PROPERTIES,
)  # fmt: skip

# A class noun is live if its last word is in LIVE_NOUNS and none of its words is in _LIKENESSES.
LIVE_NOUNS: frozenset[str] = frozenset({
    *(noun for noun, kind in KIND_OF.items() if kind == "animal"),
    "animal", "pet", "puppy", "kitten", "pony", "foal", "calf", "lamb", "sheep", "donkey", "bear", "panda", "hare",
    "ferret", "squirrel", "beaver", "turtle", "tortoise", "hen", "chicken", "goose", "crow", "raven", "seal",
    "walrus", "wildcat", "insect", "spider", "person", "man", "woman", "boy", "girl", "child", "kid", "baby",
    "toddler", "lady", "guy", "human",
})  # fmt: skip
_LIKENESSES = frozenset({
    "stuffed", "toy", "plush", "plushie", "doll", "figurine", "figure", "statue", "sculpture", "cartoon", "emoji",
    "robot",
})  # fmt: skip

# Our own list for bases with an open vocabulary: everyday things, places, people, materials, styles.
GENERAL_PROMPTS: tuple[str, ...] = (
    "a photo of a mountain lake at sunrise", "a bowl of fruit on a kitchen table", "a red bicycle against a brick wall",
    "a sailing boat on a calm sea", "an old stone bridge over a river", "a city street at night in the rain",
    "a cup of coffee and a book", "a wooden chair in an empty room", "a steam train crossing a valley",
    "a field of sunflowers under a blue sky", "a lighthouse on a cliff", "a slice of chocolate cake on a plate",
    "a portrait of an old man with a beard", "a woman reading on a park bench", "a child flying a kite",
    "a horse running on a meadow", "a flock of birds over the ocean", "a dog sleeping on a sofa",
    "a cat looking out of a window", "a snowy forest in winter", "a yellow taxi in heavy traffic",
    "a castle on a hill, oil painting", "a pencil drawing of a sailing ship", "a watercolor painting of a village",
    "an isometric illustration of a small house", "a black and white photo of a staircase",
    "a vase of tulips on a windowsill", "a guitar leaning against a wall", "a hot air balloon over a desert",
    "a bookshelf full of old books", "a spaceship above a strange planet, digital art", "a close-up of a green leaf",
    "a plate of spaghetti with tomato sauce", "a desk with a laptop and a lamp", "a market stall with vegetables",
    "a wooden cabin beside a waterfall", "a pair of leather shoes", "a clock tower in a town square",
    "a glass of orange juice", "an airplane taking off from a runway",
)  # fmt: skip


def refuse_templates(templates: Sequence[str]) -> None:
    """Raises Refused for a template that does not say in one place where the concept goes."""
    for template in templates:
        if template.count("{}") != 1:
            raise Refused(f"template {template!r}: expected one {{}} where the concept goes, as in 'a photo of a {{}}'")


def is_live(noun: str) -> bool:
    """Whether the benchmark treats a class noun as live: "cat" is, "stuffed animal" and "vase" are not."""
    words = _words(noun)
    return bool(words) and words[-1] in LIVE_NOUNS and not _LIKENESSES & set(words)


def benchmark_prompts(noun: str, token: str, world: World | WideWorld | None) -> list[str]:
    """25 prompts that put the concept in other contexts.

    Args:
        noun: the class noun, "cat".
        token: the concept's token, "<biscuit>"; empty for the same prompts without the concept, for the
            untouched base.
        world: the world of a base with a small vocabulary, or None for the DreamBooth benchmark's own prompts.

    Returns:
        25 different prompts, always the same for the same arguments; fewer only for a world too small for 25.
    """
    subject = f"{token} {noun}".strip()
    if world is None:
        templates = LIVE_PROMPTS if is_live(noun) else OBJECT_PROMPTS
        return [_article(template.format(subject), noun, token) for template in templates]
    return [_article(prompt, noun, token) for prompt in _world_prompts(noun, subject, world)]


def spread(prompts: Sequence[str], most: int) -> list[str]:
    """At most `most` of the prompts, evenly spaced, starting with the first."""
    count = min(most, len(prompts))
    return [prompts[i * len(prompts) // count] for i in range(count)]


def drift_prompts(
    world: World | WideWorld | None, count: int = 25, seed: int = 0, *, without: str | Sequence[str] = ()
) -> list[str]:
    """Prompts unrelated to a concept, whose pictures adaptation should not change.

    Args:
        world: the world of a base with a small vocabulary, or None for `GENERAL_PROMPTS`.
        count: number of prompts, all different.
        seed: of the selection.
        without: the concept's noun or nouns; prompts contain none of their words.

    Raises:
        Refused: there are not `count` different prompts without those words.
    """
    banned = {word for noun in ([without] if isinstance(without, str) else without) for word in _words(noun)}
    banned |= {word + "s" for word in banned}
    rng = np.random.default_rng(seed)
    if world is None:
        allowed = [prompt for prompt in GENERAL_PROMPTS if not banned & set(_words(prompt))]
        prompts = [allowed[i] for i in rng.permutation(len(allowed))[:count]]
    else:
        prompts = _scene_prompts(world, count, rng, banned)
    if len(prompts) < count:
        raise Refused(
            f"asked for {count} drift prompts without {', '.join(sorted(banned)) or 'any word'}; there are"
            f" {len(prompts)}: ask for fewer"
        )
    return prompts


def _scene_prompts(world: World | WideWorld, count: int, rng: np.random.Generator, banned: set[str]) -> list[str]:
    nouns = tuple(noun for noun in world.nouns if not banned & set(_words(noun)))
    styles = tuple(style for style in world.styles if style not in banned)
    backgrounds = tuple(word for word in world.backgrounds if not banned & set(_words(BACKGROUNDS[word][0])))
    if not (nouns and styles and backgrounds):
        return []
    if isinstance(world, WideWorld):
        rest = WideWorld(core=tuple(row for row in world.core if row[0] in nouns), styles=styles, drawn=())
    else:
        rest = World(nouns=nouns, styles=styles, backgrounds=backgrounds)
    prompts: dict[str, None] = {}
    for _ in range(50 * count):  # a small world repeats itself: enough draws to see all of it
        if len(prompts) == count:
            break
        prompt = _drawn_caption(rng, rest)
        if not banned & set(_words(prompt)):
            prompts[prompt] = None
    return list(prompts)


def _drawn_caption(rng: np.random.Generator, world: World | WideWorld) -> str:
    """The caption of a scene drawn at random, with all that can be said of it."""
    if isinstance(world, WideWorld):
        return wide_caption(sample_wide_scene(rng, world))
    return caption(sample_scene(rng, world))


def _world_prompts(noun: str, subject: str, world: World | WideWorld) -> list[str]:
    """Prompts in the word order of captions: size, colour, style, noun, what is worn, position, background."""
    grounds = [BACKGROUNDS[word][0] for word in world.backgrounds]
    rng = np.random.default_rng(0)
    grounds = [grounds[i] for i in rng.permutation(len(grounds))]
    others = [other for other in world.nouns if other not in _words(noun)]
    others = [others[i] for i in rng.permutation(len(others))] or ["thing"]
    known = [style for style, _ in STYLES if style in world.styles] or list(world.styles)

    def ground(index: int) -> str:
        return grounds[index % len(grounds)]

    def other(index: int) -> str:
        name = f"{known[index % len(known)]} {others[index % len(others)]}"
        return ("an " if name[0] in "aeiou" else "a ") + name

    if isinstance(world, WideWorld):
        return _wide_prompts(subject, ground, other)
    places = [POSITIONS[word][0] for word in ("left", "right", "top", "bottom")]
    prompts = [f"a {subject} {ground(i)}" for i in range(min(9, len(grounds)))]
    prompts += [f"a {subject} {place} {ground(9 + i)}" for i, place in enumerate(places)]
    prompts += [f"a {size} {subject} {ground(13 + i)}" for i, size in enumerate(("small", "large"))]
    prompts += [f"a {known[i % len(known)]} {subject} {ground(15 + i)}" for i in range(4)]
    prompts += [f"a {subject} next to {other(i)} {ground(19 + i)}" for i in range(4)]
    prompts += [f"{other(4)} above a {subject} {ground(23)}", f"a {subject} above {other(5)} {ground(24)}"]
    # A smaller world gives fewer different prompts: fill up with small subjects at each position.
    spare = [f"a small {subject} {place} {ground(i)}" for i in range(len(grounds)) for place in places]
    return list(dict.fromkeys(prompts + spare))[:25]


def _wide_prompts(subject: str, ground: Callable[[int], str], other: Callable[[int], str]) -> list[str]:
    """25 prompts of the wide world, in an order of which any five by `spread` ask for different things."""
    left, right, top, bottom = (POSITIONS[word][0] for word in ("left", "right", "top", "bottom"))
    return [
        f"a {subject} {ground(0)}", f"a {subject} {PLACES['snow']}", f"a {subject} {ground(1)}",
        f"a {subject} {PLACES['forest']}", f"a {subject} on a striped blue background",
        f"a {subject} {left} {ground(2)}", f"a small {subject} {ground(3)}", f"a purple {subject} {ground(4)}",
        f"a green {subject} {ground(5)}", f"a {subject} {right} {ground(6)}",
        f"a {subject} wearing a hat {ground(7)}", f"a {subject} wearing a red scarf {ground(8)}",
        f"a {subject} wearing a crown {ground(9)}", f"a {subject} next to {other(0)} {ground(10)}",
        f"a {subject} {top} {ground(11)}", f"a blue {subject} {ground(12)}", f"a {subject} {bottom} {ground(13)}",
        f"a {subject} on {other(1)} {ground(0)}", f"{other(2)} above a {subject} {ground(1)}",
        f"a large {subject} {ground(2)}", f"a {subject} behind {other(3)} {ground(3)}",
        f"a {subject} {ground(4)}", f"a {subject} {ground(5)}",
        f"a {subject} {ground(6)}", f"a {subject} {ground(7)}",
    ]  # fmt: skip


def _article(prompt: str, noun: str, token: str) -> str:
    """Without a token, "a owl" becomes "an owl"; with one, the benchmark's "a" stays."""
    if token or noun[0].lower() not in "aeiou":
        return prompt
    return re.sub(rf"\ba {re.escape(noun)}\b", f"an {noun}", prompt)


def _words(text: str) -> list[str]:
    return re.findall(r"[\w-]+", text.lower())


def world_captions(base: Any, count: int = WORLD_CAPTIONS) -> list[str]:
    """Captions in the grammar of a base with a small vocabulary, always the same.

    Raises:
        Refused: the base knows ordinary language, so that captions have to come from a text.
    """
    world = world_of(base)
    if world is None:
        raise Refused(
            f"{base.name!r} knows ordinary language: give a text file with a caption on each line, --captions FILE "
            "(some thousands; the paper took 100,000 of LAION)"
        )
    rng = np.random.default_rng(0)
    return [_drawn_caption(rng, world) for _ in range(count)]
