"""Training batches of the probe: scenes of the wide world, views of thousands of sprites, captions true and false."""

import dataclasses
import json
import re
from collections import defaultdict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffadapt.bases import Base, load_base
from diffadapt.data.asked import SEEN_AS
from diffadapt.data.drawn_styles import SEEN
from diffadapt.data.scenes import FOLDER_OF, load_sprite
from diffadapt.data.wide_pictures import Sprites as WideSprites
from diffadapt.data.wide_pictures import draw_wide_scenes, load_wide_sprites
from diffadapt.data.wide_scenes import Ground, Thing, WideScene, WideWorld, sample_wide_scene, wide_caption
from diffadapt.data.wide_world import (
    ACCESSORIES,
    COLOURS,
    CORE,
    PATTERNS,
    PLACES,
    RELATIONS,
    tail_nouns,
    wide_grammar_words,
)
from diffadapt.data.world import BACKGROUNDS, HELD_OUT_NOUNS, NOUNS, POSITIONS, SIZES, STYLES
from diffadapt.metrics.probe import PADDING, UNKNOWN, ProbeShape

FOLDERS = (*(folder for _, folder in STYLES), "fluent-flat")  # the base-marked sets but the held-out style
STYLE_OF = {folder: style for style, folder in STYLES}
CORE_NOUNS = tuple(noun for noun, *_ in NOUNS[:CORE])
LABELS = {
    "object": CORE_NOUNS,
    "second": (*CORE_NOUNS, "none"),
    "style": tuple(style for style, _ in STYLES),
    "background": (*BACKGROUNDS, *PLACES),
    "position": tuple(POSITIONS),
    "size": tuple(SIZES),
    "colour": (*COLOURS, "own"),  # of the first thing; "own" as its artist painted it
    "count": ("1", "2", "3"),
    "wearing": (*ACCESSORIES, "nothing"),
    "relation": (*(word for word in RELATIONS if word not in SEEN_AS), "none"),
    "pattern": (*PATTERNS, "none"),
    "drawn": (*SEEN, "none"),
}
NUMBER = {head: {label: i for i, label in enumerate(labels)} for head, labels in LABELS.items()}
SKIP = -100  # a label that is not known: no loss
ORDERED = ("above", "under", "on")  # relations that are false the other way round
CHANGES = ("noun", "style", "background", "position", "size", "order", "colour", "count", "wearing", "pattern")


def probe_shape(data: Path) -> ProbeShape:
    """Labels, and the vocabulary: every word of the wide world's captions; held-out ones stay unknown."""
    kinds = {kind for _, kind, _ in HELD_OUT_NOUNS}
    untaught = {noun for noun, *_ in HELD_OUT_NOUNS} | (set(FOLDER_OF) - set(STYLE_OF.values()))
    words = [word for word in wide_grammar_words(tail_nouns(data)) if word not in untaught or word in kinds]
    return ProbeShape(labels=LABELS, words=(PADDING, UNKNOWN, *words), widths=(32, 64, 128, 192), style_by_object=True)


class Sprites:
    """Every sprite the probe may see, by number. Held-out nouns are left out in every folder.

    Attributes:
        stack: (S, 4, 72, 72) uint8, premultiplied.
        number: (folder, file stem) -> row of `stack`.
        world: the wide world whose scenes are drawn, and `of_world` its sprites.
        base: the embedded base, whose autoencoder some of the pictures are sent through; loaded when it is asked for.
    """

    def __init__(self, data: Path, *, stems: set[str] | None = None, folders: tuple[str, ...] = FOLDERS) -> None:
        held_out = {stem for _, _, stem in HELD_OUT_NOUNS}
        pictures, self.number, self.folders_of = [], {}, defaultdict(list)
        for folder in folders:
            lines = (data / folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
            for name in sorted(json.loads(line)["file_name"] for line in lines):
                stem = name.removesuffix(".png")
                if (stem in held_out) if stems is None else (stem not in stems):
                    continue
                self.number[folder, stem] = len(pictures)
                self.folders_of[stem].append(folder)
                pictures.append((load_sprite(data / folder / name) * 255).round().byte())
        self.stack = torch.stack(pictures)
        self.stems = sorted(self.folders_of)
        self.world = WideWorld(tail=tail_nouns(data), core_share=0.8)
        self.of_world: WideSprites = load_wide_sprites(data, self.world) if stems is None else {}

    @cached_property
    def base(self) -> Base:
        return load_base("embedded", device="cpu")

    def views(self, rng: np.random.Generator, chosen: list[tuple[str, str]]) -> tuple[list[WideScene], WideSprites]:
        """One plain scene of one thing for each (folder, stem)."""
        scenes, sprites = [], {}
        for i, (folder, stem) in enumerate(chosen):
            scene = sample_wide_scene(rng, self.world, plain=True)
            style = STYLE_OF.get(folder, "<style>")
            thing = dataclasses.replace(scene.things[0], noun="<thing>", stem=f"view {i}", style=style, colour=None)
            scenes.append(dataclasses.replace(scene, things=(thing,)))
            sprites[thing.stem, style] = self.stack[self.number[folder, stem]]
        return scenes, sprites


NOUN_OF_STEM = {stem: noun for noun, _, stem in NOUNS[:CORE]}


def labels_of(scene: WideScene) -> list[int]:
    """The label of each head, SKIP where a caption could not say it either."""
    # One picture is "a cat above a dog" and "a dog under a cat": first is the upper, the left or the hind one.
    things = scene.things[::-1] if scene.relation == "under" else scene.things
    first, single = things[0], len(things) == 1
    one = single and len(first.boxes) == 1
    relation = SEEN_AS.get(scene.relation or "none", scene.relation or "none")
    drawn = scene.drawn or "none"
    said = {
        "object": first.noun,
        "second": "none" if single else things[1].noun,
        "style": first.style,
        "background": scene.ground.word,
        "position": first.position if one else None,
        "size": first.size if one else None,
        "colour": first.colour or "own",
        "count": str(len(first.boxes)),
        "wearing": first.wearing or "nothing",
        "relation": relation,
        "pattern": scene.ground.pattern or "none",
        "drawn": drawn,
    }
    if drawn != "none":  # colours, and often the ground, are the drawing's own
        said |= {"colour": None, "background": None, "pattern": None, "style": None}
    return [NUMBER[head].get(said[head], SKIP) if said[head] is not None else SKIP for head in LABELS]


def change(scene: WideScene, rng: np.random.Generator, what: str) -> WideScene | None:
    """A scene that differs in one thing, or None where that thing cannot be changed into something false."""

    def other(words, word):
        words = [w for w in words if w != word]
        return words[int(rng.integers(len(words)))]

    things = list(scene.things)
    at = int(rng.integers(len(things)))
    thing: Thing = things[at]
    if what in ("background", "pattern"):
        ground = scene.ground
        if (what == "pattern") != bool(ground.pattern) or scene.drawn:
            return None
        new = (
            Ground(word=ground.word, pattern=other(PATTERNS, ground.pattern))
            if what == "pattern"
            else Ground(word=other((*BACKGROUNDS, *PLACES), ground.word))
        )
        return dataclasses.replace(scene, ground=new)
    if what == "order":
        if scene.relation not in ORDERED:
            return None
        things[0], things[1] = (
            dataclasses.replace(a, noun=b.noun, colour=b.colour, style=b.style) for a, b in (things, things[::-1])
        )
        return dataclasses.replace(scene, things=tuple(things))
    if what in ("position", "size") and (scene.relation or len(thing.boxes) > 1):
        return None
    if what == "size" and thing.size == "medium":
        return None
    if (what == "colour" and (not thing.colour or scene.drawn)) or (what == "wearing" and not thing.wearing):
        return None
    if what == "count":
        if len(thing.boxes) == 1:
            return None
        things[at] = dataclasses.replace(thing, boxes=thing.boxes[:1] * (5 - len(thing.boxes)))
        return dataclasses.replace(scene, things=tuple(things))
    choices = {
        "position": POSITIONS, "size": ("small", "large"), "colour": COLOURS, "wearing": ACCESSORIES,
        "style": LABELS["style"], "noun": CORE_NOUNS,
    }  # fmt: skip
    things[at] = dataclasses.replace(thing, **{what: other(choices[what], getattr(thing, what))})
    return dataclasses.replace(scene, things=tuple(things))


def painted(scene: WideScene, rng: np.random.Generator) -> WideScene:
    """Three scenes in ten have their first thing painted in one colour: who drew it is hardest to see there."""
    if scene.drawn or rng.random() > 0.3:
        return scene
    first = dataclasses.replace(scene.things[0], colour=tuple(COLOURS)[int(rng.integers(len(COLOURS)))])
    return dataclasses.replace(scene, things=(first, *scene.things[1:]))


@torch.no_grad()
def spoil(pictures: Tensor, rng: np.random.Generator, base: Base) -> Tensor:
    """Noise, blur and the base's autoencoder at times, so that faults of every generated picture do not unsettle it."""
    n = len(pictures)
    sent = torch.from_numpy(rng.random(n) < 0.15)
    pictures = pictures.clamp(0, 1)
    pictures[sent] = base.decode_latents(base.encode_pictures(pictures[sent]))
    soft = F.interpolate(F.avg_pool2d(pictures, 2), scale_factor=2, mode="bilinear", align_corners=False)
    share = torch.from_numpy((rng.random(n) < 0.4) * rng.random(n)).float()[:, None, None, None]
    level = torch.from_numpy((rng.random(n) < 0.5) * rng.uniform(0, 0.06, n)).float()[:, None, None, None]
    noise = torch.from_numpy(rng.standard_normal(pictures.shape, dtype=np.float32))
    return (pictures + share * (soft - pictures) + level * noise).clamp(0, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    pictures: Tensor  # (N, 3, 64, 64)
    labels: Tensor  # (N, heads) long
    sprite: Tensor  # (N,) long: the sprite's number, SKIP where it is not alone, or not as its artist painted it
    captions: list[str]  # N true ones
    wrong: list[str]  # M <= N false ones


def draw_batch(rng: np.random.Generator, sprites: Sprites, size: int) -> Batch:
    """9/16 of a batch are scenes of the world, the rest two views each of any sprites, half of them in two styles."""
    folder_of = dict(STYLES)
    scenes = [painted(sample_wide_scene(rng, sprites.world), rng) for _ in range(size * 9 // 16)]
    captions, wrong, labels, numbers = [], [], [], []
    for scene, seed in zip(scenes, rng.integers(2**31, size=len(scenes)), strict=True):
        text = wide_caption(scene, np.random.default_rng(seed))
        turned = scene.relation in ORDERED and rng.random() < 0.5  # else the order is hardly ever what is false
        if no := change(scene, rng, "order" if turned else CHANGES[rng.integers(len(CHANGES))]):
            false = wide_caption(no, np.random.default_rng(seed))
            wrong += [false] if false != text else []
        first = scene.things[0]
        if rng.random() < 0.1:  # a new word before the noun, as personalisation will add one
            text = re.sub(rf" {first.noun}\b", f" <new> {first.noun}", text, count=1)
        captions.append(text)
        labels.append(labels_of(scene))
        alone = len(scene.things) == 1 and not (first.colour or first.wearing or scene.drawn)
        numbers.append(sprites.number[folder_of[first.style], first.stem] if alone else SKIP)
    pictures = [draw_wide_scenes(scenes, sprites.of_world)[0]]

    chosen: list[tuple[str, str]] = []
    while len(chosen) < size - len(scenes):
        stem = sprites.stems[int(rng.integers(len(sprites.stems)))]
        folders = sprites.folders_of[stem]
        for i in rng.permutation(len(folders))[:2]:
            chosen += [(folders[i], stem)] * 2
    chosen = chosen[: size - len(scenes)]
    views, drawn = sprites.views(rng, chosen)
    pictures.append(draw_wide_scenes(views, drawn)[0])
    for view, (folder, stem) in zip(views, chosen, strict=True):
        noun = NOUN_OF_STEM.get(stem, "<thing>")
        view = dataclasses.replace(view, things=(dataclasses.replace(view.things[0], noun=noun),))
        captions.append(wide_caption(view))
        labels.append(labels_of(view))
        numbers.append(sprites.number[folder, stem])
    return Batch(
        pictures=spoil(torch.cat(pictures), rng, sprites.base),
        labels=torch.tensor(labels),
        sprite=torch.tensor(numbers),
        captions=captions,
        wrong=wrong,
    )
