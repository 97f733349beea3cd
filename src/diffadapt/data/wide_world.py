"""The words of the wide world: what the embedded base is shown beyond the nouns, styles and backgrounds of `world`.

The core is the first `CORE` nouns of `world.NOUNS` in four styles. The tail is every other emoji that all four style
folders have, under its Unicode short name, so that the base denoises shapes it was never taught by heart. Whatever
`world.HELD_OUT_NOUNS` names, and what is the same thing under another name, is in neither.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import Refused
from .drawn_styles import SEEN
from .scenes import grammar_words
from .world import HELD_OUT_NOUNS, NOUNS, STYLES

CORE = 160

# Held-out things under other names, and names that hold a held-out word.
SAME_THINGS: frozenset[str] = frozenset({
    "tiger-face", "zebra-face", "fox-face", "cricket-game", "alien-monster", "soft-ice-cream", "fortune-cookie", "tram",
    "motor-boat", "telephone-receiver", "paper-lantern", "postal-horn", "mobile-phone-with-arrow",
})  # fmt: skip

# noun -> other words for it. Each is one word, and no word stands for two nouns.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "cat": ("kitty", "kitten"), "dog": ("puppy", "hound"), "horse": ("pony", "stallion"), "pig": ("piglet", "hog"),
    "rabbit": ("bunny", "hare"), "frog": ("toad",), "owl": ("owlet",), "butterfly": ("moth",), "car": ("auto", "sedan"),
    "train": ("engine",), "bicycle": ("bike", "cycle"), "rocket": ("spaceship",), "airplane": ("plane", "jet"),
    "boat": ("yacht", "sailboat"), "house": ("home", "cottage"), "church": ("chapel",), "tree": ("oak",),
    "hat": ("topper",), "shoe": ("sneaker", "trainer"), "doughnut": ("donut",), "robot": ("android",),
    "ghost": ("spirit", "spook"), "monkey": ("ape",), "lion": ("wildcat",), "cow": ("cattle", "heifer"),
    "mouse": ("rodent",), "rooster": ("cockerel",), "chick": ("chicklet",), "dinosaur": ("dino", "brontosaurus"),
    "ladybug": ("ladybird",), "corn": ("maize",), "fries": ("chips",), "candy": ("sweet",), "truck": ("lorry", "van"),
    "scooter": ("moped",), "ship": ("vessel",), "television": ("tv", "telly"), "gift": ("present",),
    "football": ("soccerball",), "laptop": ("notebook", "computer"), "jeans": ("trousers",), "boot": ("hikingboot",),
    "shirt": ("tee",), "book": ("volume",), "bomb": ("explosive",), "fire": ("flame",),
    "clock": ("alarm",), "coffee": ("espresso",), "orange": ("mandarin",), "eggplant": ("aubergine",),
}  # fmt: skip

# A class between noun and kind -> its nouns. The word of a class never is the word of a noun.
CLASSES: dict[str, tuple[str, ...]] = {
    "pet": ("cat", "dog", "rabbit", "hamster", "mouse"),
    "livestock": ("horse", "pig", "cow", "ram", "goat", "turkey", "rooster", "chick", "duck"),
    "mammal": ("elephant", "monkey", "gorilla", "wolf", "raccoon", "lion", "leopard", "deer", "boar", "camel",
               "hippopotamus", "bat", "sloth", "otter", "skunk", "kangaroo", "badger"),
    "fowl": ("penguin", "owl", "bird", "dove", "eagle", "swan", "peacock"),
    "sealife": ("fish", "whale", "octopus", "crab", "shrimp", "squid", "oyster"),
    "reptile": ("lizard", "snake", "dinosaur"),
    "insect": ("butterfly", "snail", "ladybug", "scorpion"),
    "fruit": ("apple", "pear", "strawberry", "pineapple", "watermelon", "grapes", "melon", "orange", "mango", "kiwi",
              "coconut"),
    "vegetable": ("carrot", "mushroom", "tomato", "eggplant", "potato", "corn", "garlic", "onion"),
    "snack": ("pizza", "pretzel", "fries", "taco", "popcorn", "bacon", "cheese", "egg"),
    "dessert": ("doughnut", "cake", "pancakes", "waffle", "pie", "candy", "lollipop", "honey"),
    "drink": ("wine", "beer", "milk", "coffee"),
    "flower": ("sunflower", "rose", "tulip", "clover"),
    "aircraft": ("rocket", "satellite"),
    "watercraft": ("ferry", "canoe", "ship", "boat"),
    "garment": ("shirt", "jeans", "scarf", "gloves"),
    "footwear": ("shoe", "boot"),
}  # fmt: skip

# Colour word -> the RGB that an object's or a pattern's middle tones take.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (212, 52, 48), "orange": (240, 140, 40), "yellow": (244, 208, 60), "green": (66, 164, 78),
    "blue": (58, 110, 214), "purple": (134, 76, 186), "pink": (242, 140, 180), "gray": (134, 138, 144),
    "white": (236, 236, 236), "black": (44, 46, 52), "brown": (140, 90, 54),
}  # fmt: skip
PATTERNS: tuple[str, ...] = ("striped", "dotted", "checkered")
# Place word -> how a caption says it. Painted by `wide_pictures`.
PLACES: dict[str, str] = {
    "snow": "in the snow", "beach": "on a beach", "forest": "in a forest", "sky": "in the sky",
    "wood": "on a wooden floor",
    "bricks": "in front of a brick wall", "space": "in space", "water": "under water", "room": "in a room",
    "sunset": "at sunset", "mountains": "in the mountains", "street": "on a street",
}  # fmt: skip
# What can be worn -> the emoji's file stem.
ACCESSORIES: dict[str, str] = {"hat": "top-hat", "crown": "crown", "scarf": "scarf", "glasses": "glasses"}
NUMBERS: dict[int, str] = {2: "two", 3: "three"}
RELATIONS: tuple[str, ...] = ("next to", "above", "under", "on", "behind", "in front of")
OPENINGS: tuple[str, ...] = ("a photo of", "a picture of", "an image of", "a drawing of")
_UNCOUNTED = frozenset({
    "grapes", "fries", "pancakes", "jeans", "gloves", "corn", "bread", "milk", "honey", "butter", "bacon", "popcorn",
    "salad", "garlic", "wine", "beer", "coffee", "fire", "sun", "moon", "dice",
})  # fmt: skip
_ODD_PLURALS = {"mouse": "mice", "wolf": "wolves", "goose": "geese", "leaf": "leaves", "scarf": "scarves"}
_SAME_PLURALS = frozenset({"fish", "deer", "shrimp", "squid"})

_KIND_OF_GROUP = {
    "animals-nature": "animal", "food-drink": "food", "people-body": "person", "smileys-emotion": "face",
    "symbols": "symbol", "travel-places": "place", "activities": "thing", "objects": "thing",
}  # fmt: skip
_KIND_OF_SUBGROUP = {
    "plant-flower": "plant", "plant-other": "plant", "dishware": "thing", "body-parts": "thing", "heart": "symbol",
    "emotion": "symbol", "cat-face": "animal", "monkey-face": "animal", "clothing": "clothing", "tool": "tool",
    "writing": "tool", "musical-instrument": "instrument", "sky-weather": "sky", "time": "thing", "hotel": "thing",
    "place-building": "building", "place-religious": "building", "transport-air": "vehicle",
    "transport-ground": "vehicle", "transport-water": "vehicle",
}  # fmt: skip


def words_of(name: str) -> str:
    """A Unicode short name as a caption's noun: lower case, letters and digits and single spaces."""
    plain = name.lower().replace("\u2019", "").replace("'", "").replace(".", "")
    return " ".join(re.findall(r"[a-z0-9]+", plain))


def tail_nouns(folder: str | Path) -> tuple[tuple[str, str, str], ...]:
    """The tail of the world: (noun, kind, file stem) of every emoji that all four style folders have.

    Args:
        folder: holds one folder per style of `world.STYLES`, each with sprites and a `metadata.jsonl`.

    Raises:
        Refused: when a `metadata.jsonl` is missing.
    """
    rows: list[dict[str, dict]] = []
    for _, style_folder in STYLES:
        path = Path(folder) / style_folder / "metadata.jsonl"
        if not path.is_file():
            raise Refused(f"no {path}; expected the list of sprites that the wide world takes its names from")
        lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
        rows.append({row["file_name"].removesuffix(".png"): row for row in lines})
    held_out = {stem for _, _, stem in HELD_OUT_NOUNS} | SAME_THINGS
    taken = {stem for _, _, stem in NOUNS[:CORE]} | held_out
    known = {noun for noun, _, _ in NOUNS[:CORE]} | {noun for noun, _, _ in HELD_OUT_NOUNS}
    of_stem = {stem: (noun, kind) for noun, kind, stem in NOUNS[CORE:]}
    found = []
    for stem in sorted(set.intersection(*map(set, rows)) - taken):
        row = rows[0][stem]
        kind = _KIND_OF_SUBGROUP.get(row["subgroup"], _KIND_OF_GROUP[row["group"]])
        noun, kind = of_stem.get(stem, (words_of(row["name"]), kind))
        if noun and noun not in known:  # "fish" and "tropical fish" are both there; two sprites never share a name
            known.add(noun)
            found.append((noun, kind, stem))
    return tuple(found)


def plural(noun: str) -> str | None:
    """The plural of a core noun, None for what cannot be counted.

    plural("cat") == "cats"; plural("butterfly") == "butterflies"; plural("milk") is None
    """
    if noun in _UNCOUNTED:
        return None
    if noun in _SAME_PLURALS:
        return noun
    if noun in _ODD_PLURALS:
        return _ODD_PLURALS[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    if noun.endswith(("s", "x", "z", "ch", "sh")) or noun in ("potato", "tomato", "mango"):
        return noun + "es"
    return noun + "s"


def wide_grammar_words(tail: Iterable[tuple[str, str, str]]) -> list[str]:
    """Every word that a caption of the wide world can hold; the tokenizer gives each one entry."""
    words = set(grammar_words())
    phrases = [*PLACES.values(), *RELATIONS, *OPENINGS, *NUMBERS.values(), *PATTERNS, *COLOURS, *ACCESSORIES, *SEEN]
    phrases += [*CLASSES, *(word for others in SYNONYMS.values() for word in others), "wearing a", "background"]
    phrases += [word for noun, _, _ in NOUNS[:CORE] if (word := plural(noun))]
    for noun, kind, _ in tail:
        phrases += [noun, kind]
    return sorted(words.union(*(phrase.split() for phrase in phrases)))
